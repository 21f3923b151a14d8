//! A run as the tests of this room ask for it.

use super::boot::BootFiles;
use super::config::{
    AccelChoice, Accelerator, BootSource, LowerArgument, Network, OnCrash, RunConfig,
    UpperArgument, VmmChoice,
};
use super::ground::{Ground, Vmm};
use super::machine::{Console, Machine};

pub(crate) fn machine() -> Machine {
    Machine {
        accelerator: Accelerator::Tcg,
        memory_bytes: 1 << 30,
        cpus: 2,
        queues: 1,
        tag: "thinroot".to_owned(),
        kernel: "/image/vmlinux".into(),
        initramfs: "/image/initramfs".into(),
        kernel_arguments: "console=ttyS0 quiet".to_owned(),
        console: Console::File("/run/console".into()),
        network: Network::None,
        vmm_arguments: Vec::new(),
    }
}

pub(crate) fn config() -> RunConfig {
    RunConfig {
        program: "/bin/thinroot".into(),
        lowers: vec![LowerArgument::Tree("/base".into())],
        upper: UpperArgument::Keep { upper: "/up".into(), work: None },
        boot: BootSource::Default,
        accel: AccelChoice::Tcg,
        vmm: VmmChoice::Qemu,
        memory_bytes: 1 << 30,
        cpus: 2,
        queues: 1,
        tag: "thinroot".to_owned(),
        network: Network::None,
        command: vec!["/bin/true".into()],
        environment: Vec::new(),
        directory: None,
        hostname: None,
        tty: false,
        timeout: None,
        boot_timeout: None,
        on_crash: OnCrash::Discard,
        print: false,
        json: None,
        verbose: false,
        console: None,
        kernel_arguments: Vec::new(),
        vmm_arguments: Vec::new(),
        daemon_arguments: Vec::new(),
    }
}

pub(crate) fn ground() -> Ground {
    Ground {
        vmm: Vmm::Qemu("/bin/qemu".into()),
        boot: BootFiles {
            kernel: "/image/vmlinuz".into(),
            is_pvh: false,
            initramfs: "/image/initramfs".into(),
            image: None,
        },
        modules: None,
        accelerator: Accelerator::Tcg,
        accelerator_reason: "asked for".to_owned(),
    }
}
