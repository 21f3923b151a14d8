//! Random bytes in the place of every request: whatever comes, one well-formed answer goes.

use zerocopy::IntoBytes as _;

use super::{Guest, Message};
use crate::fuse::abi::{self, Opcode};

/// xorshift64*: the same bytes on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(limit).unwrap()).unwrap()
    }

    fn bytes(&mut self, size: usize) -> Vec<u8> {
        (0..size).map(|_| self.next().to_le_bytes()[0]).collect()
    }

    /// Small, huge, or anything: the numbers that break arithmetic.
    fn number(&mut self) -> u64 {
        match self.below(4) {
            0 => self.next() % 8,
            1 => u64::MAX - self.next() % 8,
            2 => 1_u64.rotate_left(u32::try_from(self.below(64)).unwrap()),
            _ => self.next(),
        }
    }
}

/// A body that is more often nearly right than noise would be.
fn body(random: &mut Random) -> Vec<u8> {
    let mut body = Vec::new();
    for _ in 0..random.below(12) {
        match random.below(5) {
            0 => body.extend_from_slice(b"name\0"),
            1 => body.extend_from_slice(b"user.name\0"),
            2 => body.extend_from_slice(&random.number().to_ne_bytes()),
            3 => {
                let size = random.below(40);
                body.extend(random.bytes(size));
            }
            _ => body.extend_from_slice(&[0; 8]),
        }
    }
    body
}

fn header(random: &mut Random, opcode: u32, length: usize) -> abi::InHeader {
    let honest = random.below(8) != 0;
    let [low, _] = halves(random.number());
    abi::InHeader {
        len: if honest { u32::try_from(length).unwrap() } else { low },
        opcode,
        unique: random.next(),
        nodeid: random.number() % 16,
        uid: u32::try_from(random.number() >> 32).unwrap(),
        gid: 0,
        pid: 1,
        total_extlen: u16::try_from(random.below(if honest { 3 } else { 65_536 })).unwrap(),
        padding: 0,
    }
}

fn halves(number: u64) -> [u32; 2] {
    let mut halves = [0; 2];
    halves.as_mut_bytes().copy_from_slice(number.as_bytes());
    halves
}

#[test]
fn random_bytes_with_every_opcode_get_one_well_formed_answer() {
    let guest = Guest::started();
    let mut random = Random(0x7468_696e_726f_6f74);
    let opcodes = Opcode::ALL.iter().map(|&opcode| opcode as u32).chain([0, 7, 54, 4096, u32::MAX]);
    for opcode in opcodes {
        for _ in 0..2000 {
            if [Opcode::Destroy as u32, Opcode::Init as u32].contains(&opcode) {
                guest.init(45, u32::MAX, u32::MAX);
            }
            let body = body(&mut random);
            let header = header(&mut random, opcode, abi::IN_HEADER_BYTES + body.len());
            let mut message = [header.as_bytes(), &body].concat();
            if random.below(16) == 0 {
                message.truncate(random.below(message.len() + 1));
            }
            let capacity = random.below(8192);
            let _well_formed = guest.send(&message, b"some data", capacity);
        }
        guest.init(45, u32::MAX, u32::MAX);
    }
}

#[test]
fn bits_flipped_in_good_requests_get_one_well_formed_answer() {
    let guest = Guest::started();
    let file = guest.file(b"file");
    let mut random = Random(42);
    let create = abi::CreateIn { mode: 0o100_644, ..Default::default() };
    let good = [
        Message::new(Opcode::Lookup, 1).bytes(b"file\0"),
        Message::new(Opcode::Create, 1).with(&create).bytes(b"new\0"),
        Message::new(Opcode::Symlink, 1).bytes(b"link\0target\0"),
        Message::new(Opcode::Rename2, 1)
            .with(&abi::Rename2In { newdir: 1, ..Default::default() })
            .bytes(b"old\0new\0"),
        Message::new(Opcode::SetAttr, file)
            .with(&abi::SetAttrIn { valid: 0xfff, ..Default::default() }),
        Message::new(Opcode::Read, file).with(&abi::ReadIn { size: 4096, ..Default::default() }),
        Message::new(Opcode::ReadDirPlus, 1)
            .with(&abi::ReadIn { size: 4096, ..Default::default() }),
        Message::new(Opcode::SetXattr, file)
            .with(&abi::SetXattrIn { size: 1, ..Default::default() })
            .bytes(b"user.a\0v"),
        Message::new(Opcode::BatchForget, 0)
            .with(&abi::BatchForgetIn { count: 1, dummy: 0 })
            .with(&abi::ForgetOne { nodeid: file, nlookup: 1 }),
    ];
    for message in good.map(|message| message.assembled()) {
        for _ in 0..3000 {
            let mut message = message.clone();
            for _ in 0..=random.below(3) {
                let at = random.below(message.len());
                message[at] ^= 1 << random.below(8);
            }
            let capacity = random.below(4096);
            let _well_formed = guest.send(&message, b"", capacity);
            guest.init(45, u32::MAX, u32::MAX);
        }
    }
}
