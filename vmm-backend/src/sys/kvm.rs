//! A virtual machine of one CPU that runs one loop: what the timed KVM probe measures.

use std::fs::File;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::time::{Duration, Instant};

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// How often the loop turns. A processor does it in about 50 microseconds.
pub const LOOP_TURNS: u64 = 100_000;

const MEMORY_BYTES: usize = 2 << 20;
const PAGE_MAP: u64 = 0x1000;
const PAGE_DIRECTORY_POINTERS: u64 = 0x2000;
const PAGE_DIRECTORY: u64 = 0x3000;
const CODE: u64 = 0x4000;
/// The port the program writes when the loop is done; any would do.
const PORT: u16 = 0xf4;
/// `1: dec rcx; jnz 1b; out 0xf4, al; hlt`.
const PROGRAM: [u8; 8] = [0x48, 0xff, 0xc9, 0x75, 0xfb, 0xe6, 0xf4, 0xf4];

/// Why the loop did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// A KVM call failed.
    #[error("KVM: {call}: {cause}")]
    Call {
        /// The ioctl's name.
        call: &'static str,
        /// What it said.
        cause: kvm_ioctls::Error,
    },
    /// Guest memory could not be had or filled.
    #[error("KVM: guest memory: {0}")]
    Memory(String),
    /// The CPU stopped somewhere else than at the port write.
    #[error("KVM: the processor stopped with {0} instead of finishing the loop")]
    Exit(String),
}

/// Runs [`LOOP_TURNS`] turns on one vCPU in 64-bit mode on `device` (an open `/dev/kvm`) and says
/// how long that took. Calls `started` right before the CPU runs.
///
/// A broken KVM may never return from here: call it in a process that somebody else kills.
///
/// Source: Documentation/virt/kvm/api.rst, `KVM_RUN`.
pub fn time_loop(device: File, started: impl FnOnce()) -> Result<Duration, LoopError> {
    // SAFETY: `device` is an open descriptor given up by its owner, so `Kvm` is the only one to
    // close it; `Kvm` itself checks nothing but ioctl results.
    let kvm = unsafe { Kvm::from_raw_fd(device.into_raw_fd()) };
    // api.rst: "Applications should refuse to run if KVM_GET_API_VERSION returns a value other
    // than 12."
    if kvm.get_api_version() != 12 {
        return Err(LoopError::Exit("an API version other than 12".to_owned()));
    }
    let machine = kvm.create_vm().map_err(call("KVM_CREATE_VM"))?;
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)])
        .map_err(|cause| LoopError::Memory(cause.to_string()))?;
    fill(&memory).map_err(|cause| LoopError::Memory(cause.to_string()))?;
    attach(&machine, &memory)?;
    let mut cpu = machine.create_vcpu(0).map_err(call("KVM_CREATE_VCPU"))?;
    enter_long_mode(&cpu)?;
    started();
    let start = Instant::now();
    match cpu.run().map_err(call("KVM_RUN"))? {
        VcpuExit::IoOut(PORT, _) => Ok(start.elapsed()),
        other => Err(LoopError::Exit(format!("{other:?}"))),
    }
}

fn call(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> LoopError {
    move |cause| LoopError::Call { call, cause }
}

/// One identity-mapped 2 MiB page, and the program.
fn fill(memory: &GuestMemoryMmap<()>) -> Result<(), vm_memory::GuestMemoryError> {
    // Intel SDM volume 3, 4.5: present | writable, and "page size" for the last level.
    memory.write_obj(PAGE_DIRECTORY_POINTERS | 0b11, GuestAddress(PAGE_MAP))?;
    memory.write_obj(PAGE_DIRECTORY | 0b11, GuestAddress(PAGE_DIRECTORY_POINTERS))?;
    memory.write_obj(0b1000_0011_u64, GuestAddress(PAGE_DIRECTORY))?;
    memory.write_slice(&PROGRAM, GuestAddress(CODE))
}

fn attach(machine: &VmFd, memory: &GuestMemoryMmap<()>) -> Result<(), LoopError> {
    let address = memory
        .get_host_address(GuestAddress(0))
        .map_err(|cause| LoopError::Memory(cause.to_string()))?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY_BYTES as u64,
        userspace_addr: address as u64,
    };
    // SAFETY: `address` is the start of a mapping of MEMORY_BYTES that `memory` keeps; the caller
    // holds `memory` until after the CPU ran and the machine is gone with this process.
    unsafe { machine.set_user_memory_region(region) }.map_err(call("KVM_SET_USER_MEMORY_REGION"))
}

/// Intel SDM volume 3, 9.8.5: PAE, page tables, EFER.LME, then paging; here all at once.
fn enter_long_mode(cpu: &VcpuFd) -> Result<(), LoopError> {
    let mut system = cpu.get_sregs().map_err(call("KVM_GET_SREGS"))?;
    set_segments(&mut system);
    system.cr3 = PAGE_MAP;
    system.cr4 = 1 << 5; // PAE
    system.cr0 = 1 << 31 | 1 << 5 | 1 << 4 | 1; // PG, NE, ET, PE
    system.efer = 1 << 10 | 1 << 8; // LMA, LME
    cpu.set_sregs(&system).map_err(call("KVM_SET_SREGS"))?;
    let registers = kvm_regs { rip: CODE, rcx: LOOP_TURNS, rflags: 2, ..Default::default() };
    cpu.set_regs(&registers).map_err(call("KVM_SET_REGS"))
}

fn set_segments(system: &mut kvm_sregs) {
    let data = kvm_segment {
        limit: u32::MAX,
        selector: 0x10,
        type_: 3, // read, write, accessed
        present: 1,
        s: 1,
        g: 1,
        db: 1,
        ..Default::default()
    };
    system.cs = kvm_segment { selector: 0x8, type_: 11, l: 1, db: 0, ..data };
    for segment in [&mut system.ds, &mut system.es, &mut system.fs, &mut system.gs, &mut system.ss]
    {
        *segment = data;
    }
}
