//! cloud-hypervisor: its command line. It needs KVM, and a socket path instead of a descriptor.

use std::path::Path;

use super::config::Network;
use super::machine::{Console, Machine};
use super::plan::CommandLine;

/// The name it goes by.
pub const PROGRAM: &str = "cloud-hypervisor";

/// The most queue entries it gives a file system device.
const QUEUE_SIZE: u16 = 1024;

/// Why cloud-hypervisor cannot run `machine`, if it cannot.
pub fn refusal(machine: &Machine) -> Option<&'static str> {
    (machine.network == Network::User).then_some(
        "--net user: cloud-hypervisor has no user-mode network; use --net none or --vmm qemu",
    )
}

/// The command line that boots `machine` with the daemon behind the socket at `socket`.
///
/// It asks for no more request queues than CPUs, its own limit.
pub fn command_line(program: &Path, machine: &Machine, socket: &Path) -> CommandLine {
    let mut line = CommandLine::new(program);
    line.option("--cpus", format!("boot={}", machine.cpus));
    line.option("--memory", format!("size={}M,shared=on", machine.memory_mib()));
    line.option("--kernel", &machine.kernel);
    line.option("--initramfs", &machine.initramfs);
    line.option("--cmdline", &machine.kernel_arguments);
    let queues = u32::from(machine.queues).min(machine.cpus).max(1);
    line.option(
        "--fs",
        format!(
            "tag={},socket={},num_queues={queues},queue_size={QUEUE_SIZE}",
            machine.tag,
            socket.display()
        ),
    );
    match &machine.console {
        Console::File(path) => line.option("--serial", format!("file={}", path.display())),
        Console::Stdio { .. } => line.option("--serial", "tty"),
    }
    line.option("--console", "off");
    line.arguments.extend(machine.vmm_arguments.iter().cloned());
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::testbed::machine;

    #[test]
    fn guest_boots_with_shared_memory_and_a_socket_path() {
        let socket = Path::new("/run/thinroot/fs");
        let machine = Machine { queues: 4, ..machine() };
        assert_eq!(
            command_line(Path::new("ch"), &machine, socket).to_string(),
            "ch --cpus boot=2 --memory size=1024M,shared=on --kernel /image/vmlinux \
             --initramfs /image/initramfs --cmdline 'console=ttyS0 quiet' \
             --fs tag=thinroot,socket=/run/thinroot/fs,num_queues=2,queue_size=1024 \
             --serial file=/run/console --console off"
        );
        let stdio = Machine { console: Console::Stdio { log: "/l".into() }, ..machine };
        assert!(command_line(Path::new("ch"), &stdio, socket).to_string().contains("--serial tty"));
    }

    #[test]
    fn user_network_is_refused_by_its_name() {
        assert_eq!(refusal(&machine()), None);
        assert!(
            refusal(&Machine { network: Network::User, ..machine() }).unwrap().contains("--net")
        );
    }
}
