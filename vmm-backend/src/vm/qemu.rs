//! QEMU: where it is, what it can, and its command line.

use std::path::{Path, PathBuf};

use super::config::{Accelerator, Network};
use super::machine::{Console, Machine};
use super::plan::CommandLine;

/// The names a QEMU for this processor goes by.
pub const PROGRAMS: [&str; 3] = ["qemu-system-x86_64", "qemu-kvm", "/usr/libexec/qemu-kvm"];

/// The firmware that starts a PVH kernel within milliseconds.
const QBOOT: [&str; 2] = ["/usr/share/qemu/qboot.rom", "/usr/share/qemu-kvm/qboot.rom"];

/// The virtqueue's length: the most QEMU accepts.
const QUEUE_SIZE: u16 = 1024;

/// The qboot firmware of this host, if it has one.
pub fn qboot() -> Option<PathBuf> {
    QBOOT.iter().map(PathBuf::from).find(|path| path.exists())
}

/// The command line that boots `machine` with the vhost-user connection on descriptor `socket`.
///
/// `firmware` is qboot where the kernel is a PVH one; else QEMU's own firmware is used.
pub fn command_line(
    program: &Path,
    machine: &Machine,
    firmware: Option<&Path>,
    socket: i32,
) -> CommandLine {
    let mut line = CommandLine::new(program);
    line.words(&["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    // No disk controllers, no SMBus: nothing a guest would have to probe.
    line.option("-machine", "q35,memory-backend=mem,sata=off,smbus=off,vmport=off");
    accelerator(&mut line, machine.accelerator);
    line.option("-smp", machine.cpus.to_string());
    line.option("-m", format!("{}M", machine.memory_mib()));
    // vhost-user: the daemon maps the guest's memory.
    let size = machine.memory_mib();
    line.option("-object", format!("memory-backend-memfd,id=mem,size={size}M,share=on"));
    if let Some(firmware) = firmware {
        line.option("-bios", firmware);
    }
    line.option("-kernel", &machine.kernel);
    line.option("-initrd", &machine.initramfs);
    line.option("-append", &machine.kernel_arguments);
    file_system(&mut line, machine, socket);
    console(&mut line, &machine.console);
    network(&mut line, machine.network);
    line.arguments.extend(machine.vmm_arguments.iter().cloned());
    line
}

fn accelerator(line: &mut CommandLine, accelerator: Accelerator) {
    match accelerator {
        Accelerator::Kvm => line.words(&["-accel", "kvm", "-cpu", "host"]),
        // QEMU 7.2's TCG corrupts flags around cmpxchg16b: guests without -cx16 panic at random.
        Accelerator::Tcg => line.words(&["-accel", "tcg", "-cpu", "qemu64,-cx16"]),
    }
}

fn file_system(line: &mut CommandLine, machine: &Machine, socket: i32) {
    line.option("-chardev", format!("socket,id=fs,fd={socket}"));
    let tag = machine.tag.replace(',', ",,");
    let mut device = format!("vhost-user-fs-pci,chardev=fs,tag={tag},queue-size={QUEUE_SIZE}");
    if machine.queues > 1 {
        device.push_str(&format!(",num-request-queues={}", machine.queues));
    }
    line.option("-device", device);
}

fn console(line: &mut CommandLine, console: &Console) {
    let chardev = match console {
        Console::File(path) => format!("file,id=console,path={}", option_value(path)),
        // signal=off: ^C goes to the guest. mux=on: ctrl-a x ends QEMU.
        Console::Stdio { log } => {
            format!("stdio,id=console,signal=off,mux=on,logfile={}", option_value(log))
        }
    };
    line.option("-chardev", chardev);
    line.option("-serial", "chardev:console");
}

fn network(line: &mut CommandLine, network: Network) {
    match network {
        Network::None => line.option("-net", "none"),
        Network::User => {
            line.option("-netdev", "user,id=net");
            line.option("-device", "virtio-net-pci,netdev=net,romfile=");
        }
    }
}

/// In QEMU's option lists a comma is said twice.
fn option_value(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::testbed::machine;

    fn text(machine: &Machine, firmware: Option<&str>) -> String {
        command_line(Path::new("qemu"), machine, firmware.map(Path::new), 60).to_string()
    }

    #[test]
    fn tcg_guest_boots_through_qboot_with_the_socket_as_a_descriptor() {
        assert_eq!(
            text(&machine(), Some("/q/qboot.rom")),
            "qemu -nodefaults -no-user-config -display none -no-reboot \
             -machine q35,memory-backend=mem,sata=off,smbus=off,vmport=off \
             -accel tcg -cpu qemu64,-cx16 -smp 2 -m 1024M \
             -object memory-backend-memfd,id=mem,size=1024M,share=on -bios /q/qboot.rom \
             -kernel /image/vmlinux -initrd /image/initramfs -append 'console=ttyS0 quiet' \
             -chardev socket,id=fs,fd=60 \
             -device vhost-user-fs-pci,chardev=fs,tag=thinroot,queue-size=1024 \
             -chardev file,id=console,path=/run/console -serial chardev:console -net none"
        );
    }

    #[test]
    fn each_choice_changes_its_own_words() {
        let base = machine;
        let rows = [
            (Machine { accelerator: Accelerator::Kvm, ..base() }, "-accel kvm -cpu host"),
            (Machine { queues: 4, ..base() }, "queue-size=1024,num-request-queues=4"),
            (Machine { cpus: 7, ..base() }, "-smp 7"),
            (Machine { memory_bytes: 3 << 29, ..base() }, "-m 1536M"),
            (Machine { tag: "a".into(), ..base() }, "tag=a,"),
            (
                Machine { network: Network::User, ..base() },
                "-netdev user,id=net -device virtio-net-pci,netdev=net,romfile=",
            ),
            (
                Machine { console: Console::Stdio { log: "/run/c,d".into() }, ..base() },
                "-chardev stdio,id=console,signal=off,mux=on,logfile=/run/c,,d -serial",
            ),
            (Machine { vmm_arguments: vec!["-s".into(), "-S".into()], ..base() }, "none -s -S"),
        ];
        for (machine, words) in rows {
            let line = text(&machine, None);
            assert!(line.contains(words), "{words}: {line}");
            assert!(!line.contains("-bios"), "{line}");
        }
    }
}
