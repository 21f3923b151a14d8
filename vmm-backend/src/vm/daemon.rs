//! The daemon as `thinroot run` starts it: its command line and its descriptors.

use super::config::{LowerArgument, RunConfig, UpperArgument};
use super::ground::{Ground, Vmm};
use super::places::Places;
use super::plan::CommandLine;

/// The numbers descriptors get in the children start here: above what anybody else opens early,
/// and the same in each run, so that `--print` shows what is started.
pub const DESCRIPTORS_FROM: i32 = 60;
/// The daemon's end of the vhost-user connection.
pub const SOCKET: i32 = DESCRIPTORS_FROM;
/// Where the daemon writes its events.
pub const EVENTS: i32 = DESCRIPTORS_FROM + 1;
/// Holds the command for the guest.
pub const COMMAND: i32 = DESCRIPTORS_FROM + 2;
/// Standard input, output and error of the guest's command.
pub const STDIO: [i32; 3] = [DESCRIPTORS_FROM + 3, DESCRIPTORS_FROM + 4, DESCRIPTORS_FROM + 5];
/// The VMM's end of the vhost-user connection.
pub const VMM_SOCKET: i32 = DESCRIPTORS_FROM + 6;

/// The daemon's command line.
pub fn command_line(config: &RunConfig, ground: &Ground, places: &Places) -> CommandLine {
    let mut line = CommandLine::new(&config.program);
    line.push("serve");
    for lower in &config.lowers {
        match lower {
            LowerArgument::Tree(path) => line.option("--lower", path),
            LowerArgument::Layer(path) => line.option("--layer", path),
        }
    }
    // The kernel's modules lie below the base: they are added to it and hide nothing of it.
    if let Some(modules) = &ground.modules {
        line.option("--lower", modules);
    }
    line.option("--upper", &places.upper);
    if let Some(work) = &places.work {
        line.option("--work", work);
    }
    if matches!(config.upper, UpperArgument::Discard { .. }) {
        line.push("--volatile");
    }
    match &ground.vmm {
        Vmm::Qemu(_) => line.option("--fd", SOCKET.to_string()),
        Vmm::CloudHypervisor(_) => line.option("--socket", &places.socket),
    }
    line.push("--once");
    line.option("--queues", config.queues.to_string());
    if !config.verbose {
        // Its standard error is ours, and that is mostly the command's.
        line.option("--log-level", "warn");
    }
    line.option("--events-fd", EVENTS.to_string());
    line.option("--command-fd", COMMAND.to_string());
    line.option("--stdio-fds", STDIO.map(|number| number.to_string()).join(","));
    line.arguments.extend(config.daemon_arguments.iter().cloned());
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::testbed::{config, ground};

    fn places() -> Places {
        Places {
            upper: "/up".into(),
            work: Some("/up.work".into()),
            console: "/c".into(),
            vmm_log: "/v".into(),
            socket: "/s/fs".into(),
        }
    }

    #[test]
    fn layers_keep_their_order_above_the_modules() {
        let config = RunConfig {
            lowers: vec![
                LowerArgument::Tree("/a".into()),
                LowerArgument::Layer("/b".into()),
                LowerArgument::Tree("/c".into()),
            ],
            daemon_arguments: vec!["--lax".into()],
            ..config()
        };
        let mut ground = ground();
        ground.modules = Some("/image/modules".into());
        assert_eq!(
            command_line(&config, &ground, &places()).to_string(),
            "/bin/thinroot serve --lower /a --layer /b --lower /c --lower /image/modules \
             --upper /up --work /up.work --fd 60 --once --queues 1 --log-level warn --events-fd 61 --command-fd 62 \
             --stdio-fds 63,64,65 --lax"
        );
    }

    #[test]
    fn discarded_upper_is_volatile_and_cloud_hypervisor_gets_a_path() {
        let config = RunConfig { upper: UpperArgument::Discard { parent: None }, ..config() };
        let mut ground = ground();
        ground.vmm = Vmm::CloudHypervisor("/bin/ch".into());
        let line = command_line(&config, &ground, &places()).to_string();
        assert!(line.contains("--volatile --socket /s/fs --once"), "{line}");
    }
}
