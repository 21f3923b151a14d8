//! `SipHash-2-4` with 128 bits of output: names index files and tells bases apart.
//!
//! Not a defence against somebody who makes two bases collide on purpose: whoever makes the base
//! is trusted with it. The standard library's hasher may change between releases, this may not.
//!
//! Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF", and its reference code.

/// Takes bytes in any portions; equal byte strings give equal digests.
#[derive(Debug, Clone)]
pub struct Digest {
    state: [u64; 4],
    tail: [u8; 8],
    bytes: usize,
}

impl Digest {
    /// The digest of nothing yet, under the all-zero key.
    pub const fn new() -> Self {
        Self {
            state: [
                0x736f_6d65_7073_6575,
                0x646f_7261_6e64_6f6d ^ 0xee,
                0x6c79_6765_6e65_7261,
                0x7465_6462_7974_6573,
            ],
            tail: [0; 8],
            bytes: 0,
        }
    }

    /// Takes further bytes.
    pub fn update(&mut self, mut input: &[u8]) {
        let kept = self.bytes % 8;
        self.bytes = self.bytes.wrapping_add(input.len());
        if kept > 0 {
            let taken = input.len().min(8 - kept);
            self.tail[kept..kept + taken].copy_from_slice(&input[..taken]);
            input = &input[taken..];
            if kept + taken < 8 {
                return;
            }
            self.word(u64::from_le_bytes(self.tail));
        }
        let mut words = input.chunks_exact(8);
        for word in &mut words {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(word);
            self.word(u64::from_le_bytes(bytes));
        }
        self.tail[..words.remainder().len()].copy_from_slice(words.remainder());
    }

    /// Takes a byte string with its length before it, so that two strings never run together.
    pub fn update_counted(&mut self, input: &[u8]) {
        self.update_number(u64::try_from(input.len()).unwrap_or(u64::MAX));
        self.update(input);
    }

    /// Takes a number.
    pub fn update_number(&mut self, number: u64) {
        self.update(&number.to_le_bytes());
    }

    /// The digest of all bytes taken.
    pub fn finish(mut self) -> [u8; 16] {
        let kept = self.bytes % 8;
        self.tail[kept..].fill(0);
        self.tail[7] = self.bytes.to_le_bytes()[0];
        self.word(u64::from_le_bytes(self.tail));
        self.state[2] ^= 0xee;
        let mut digest = [0; 16];
        for half in digest.chunks_exact_mut(8) {
            for _ in 0..4 {
                self.round();
            }
            let [a, b, c, d] = self.state;
            half.copy_from_slice(&(a ^ b ^ c ^ d).to_le_bytes());
            self.state[1] ^= 0xdd;
        }
        digest
    }

    fn word(&mut self, word: u64) {
        self.state[3] ^= word;
        self.round();
        self.round();
        self.state[0] ^= word;
    }

    const fn round(&mut self) {
        let [mut a, mut b, mut c, mut d] = self.state;
        a = a.wrapping_add(b);
        b = b.rotate_left(13) ^ a;
        a = a.rotate_left(32);
        c = c.wrapping_add(d);
        d = d.rotate_left(16) ^ c;
        a = a.wrapping_add(d);
        d = d.rotate_left(21) ^ a;
        c = c.wrapping_add(b);
        b = b.rotate_left(17) ^ c;
        c = c.rotate_left(32);
        self.state = [a, b, c, d];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference's `vectors_sip128` use the key 00 01 .. 0f.
    fn with_reference_key() -> Digest {
        let (k0, k1) = (0x0706_0504_0302_0100_u64, 0x0f0e_0d0c_0b0a_0908_u64);
        let mut digest = Digest::new();
        digest.state[0] ^= k0;
        digest.state[1] ^= k1;
        digest.state[2] ^= k0;
        digest.state[3] ^= k1;
        digest
    }

    #[test]
    fn digest_agrees_with_the_reference_vectors() {
        let empty = [
            0xa3, 0x81, 0x7f, 0x04, 0xba, 0x25, 0xa8, 0xe6, 0x6d, 0xf6, 0x72, 0x14, 0xc7, 0x55,
            0x02, 0x93,
        ];
        assert_eq!(with_reference_key().finish(), empty);
        let one = [
            0xda, 0x87, 0xc1, 0xd8, 0x6b, 0x99, 0xaf, 0x44, 0x34, 0x76, 0x59, 0x11, 0x9b, 0x22,
            0xfc, 0x45,
        ];
        let mut digest = with_reference_key();
        digest.update(&[0]);
        assert_eq!(digest.finish(), one);
    }

    #[test]
    fn digest_does_not_see_the_portions() {
        let bytes: Vec<u8> = (0..=200).collect();
        let mut whole = Digest::new();
        whole.update(&bytes);
        let whole = whole.finish();
        for portion in 1..20 {
            let mut parts = Digest::new();
            bytes.chunks(portion).for_each(|part| parts.update(part));
            assert_eq!(parts.finish(), whole, "portions of {portion}");
        }
    }
}
