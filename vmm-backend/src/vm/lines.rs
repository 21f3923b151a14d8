//! The command lines of one attempt: what `--print` shows and what is started.

use super::config::{Accelerator, RunConfig};
use super::error::RunError;
use super::ground::{Ground, Vmm};
use super::machine::{Console, Machine};
use super::places::Places;
use super::plan::CommandLine;
use super::{cloud_hypervisor, daemon, qemu};

/// The daemon's and the VMM's command lines.
pub fn command_lines(
    config: &RunConfig,
    ground: &Ground,
    places: &Places,
) -> Result<[CommandLine; 2], RunError> {
    let machine = machine(config, ground, places);
    let vmm = match &ground.vmm {
        Vmm::Qemu(program) => {
            let firmware = if ground.boot.is_pvh { qemu::qboot() } else { None };
            qemu::command_line(program, &machine, firmware.as_deref(), daemon::VMM_SOCKET)
        }
        Vmm::CloudHypervisor(program) => {
            if let Some(refusal) = cloud_hypervisor::refusal(&machine) {
                return Err(RunError::Refused(refusal.to_owned()));
            }
            cloud_hypervisor::command_line(program, &machine, &places.socket)
        }
    };
    Ok([daemon::command_line(config, ground, places), vmm])
}

fn machine(config: &RunConfig, ground: &Ground, places: &Places) -> Machine {
    let log = places.console.clone();
    let console =
        if config.command.is_empty() { Console::Stdio { log } } else { Console::File(log) };
    Machine {
        accelerator: ground.accelerator,
        memory_bytes: config.memory_bytes,
        cpus: config.cpus,
        queues: config.queues,
        tag: config.tag.clone(),
        kernel: ground.boot.kernel.clone(),
        initramfs: ground.boot.initramfs.clone(),
        kernel_arguments: kernel_arguments(config, ground.accelerator),
        console,
        network: config.network,
        vmm_arguments: config.vmm_arguments.clone(),
    }
}

fn kernel_arguments(config: &RunConfig, accelerator: Accelerator) -> String {
    // panic=-1: a panic ends the VM at once (with the VMM's -no-reboot) instead of hanging it.
    let mut words = vec!["console=ttyS0".to_owned(), "panic=-1".to_owned()];
    words.push(format!("thinroot.tag={}", config.tag));
    // Linux tests whether timer interrupts come; on a busy host TCG gets none through in that time
    // and the guest panics. On KVM it knows better by itself (kernel/kvm.c, kvm_guest_init).
    if accelerator == Accelerator::Tcg {
        words.push("no_timer_check".to_owned());
    }
    // A serial console is slow: boot messages cost time that only -v or a failure asks for. The
    // few notices that stay begin with the kernel's first line, its sign of life.
    if !config.verbose && !config.command.is_empty() {
        words.push("loglevel=6".to_owned());
    }
    words.extend(config.kernel_arguments.iter().cloned());
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::testbed::config;

    #[test]
    fn boot_messages_are_for_consoles_and_verbose() {
        let has_all =
            |config: &RunConfig| !kernel_arguments(config, Accelerator::Kvm).contains("loglevel");
        assert!(!has_all(&config()));
        assert!(has_all(&RunConfig { verbose: true, ..config() }));
        assert!(has_all(&RunConfig { command: vec![], ..config() }));
    }

    #[test]
    fn busy_hosts_do_not_panic_guests_on_tcg() {
        let has_check =
            |accelerator| !kernel_arguments(&config(), accelerator).contains("no_timer_check");
        assert!(has_check(Accelerator::Kvm) && !has_check(Accelerator::Tcg));
    }
}
