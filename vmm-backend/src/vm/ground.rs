//! What a run stands on: the VMM, the boot files and the accelerator that were found.

use std::path::PathBuf;

use super::boot::{BootFiles, find_program};
use super::config::{AccelChoice, Accelerator, RunConfig, VmmChoice};
use super::error::RunError;
use super::kvm::{self, KvmProbe};
use super::{cloud_hypervisor, qemu};

/// The VMM that was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Vmm {
    /// QEMU.
    Qemu(PathBuf),
    /// cloud-hypervisor.
    CloudHypervisor(PathBuf),
}

/// What a run stands on, once everything asked for is found.
#[derive(Debug)]
pub struct Ground {
    /// The VMM.
    pub vmm: Vmm,
    /// Kernel and initramfs.
    pub boot: BootFiles,
    /// The tree with the kernel's modules.
    pub modules: Option<PathBuf>,
    /// What the guest runs on.
    pub accelerator: Accelerator,
    /// Why.
    pub accelerator_reason: String,
}

impl Ground {
    /// Finds everything before anything is started, so that what is missing costs nothing.
    ///
    /// Errors: [`RunError::Refused`] with the option and the next step.
    pub fn find(config: &RunConfig) -> Result<Self, RunError> {
        check_tag(&config.tag)?;
        let vmm = find_vmm(&config.vmm)?;
        let boot = config.boot.open()?;
        let (accelerator, accelerator_reason) = choose_accelerator(config, &vmm)?;
        let modules = boot.modules_below(&config.lowers)?;
        Ok(Self { vmm, boot, modules, accelerator, accelerator_reason })
    }
}

/// The device has 36 bytes for it (virtio 1.2, 5.11.4), the kernel's command line no escapes.
fn check_tag(tag: &str) -> Result<(), RunError> {
    let is_plain = |c: char| c.is_ascii_graphic() && !"\"',".contains(c);
    if (1..=36).contains(&tag.len()) && tag.chars().all(is_plain) {
        return Ok(());
    }
    Err(RunError::Refused(format!(
        "--tag {tag:?}: expected 1 to 36 printable ASCII characters without blanks, quotes and commas"
    )))
}

fn find_vmm(choice: &VmmChoice) -> Result<Vmm, RunError> {
    match choice {
        VmmChoice::Qemu => find_program(&qemu::PROGRAMS).map(Vmm::Qemu).ok_or_else(|| {
            RunError::Refused(
                "--vmm qemu: no qemu-system-x86_64 in $PATH; install it (Debian: qemu-system-x86)"
                    .to_owned(),
            )
        }),
        VmmChoice::CloudHypervisor => {
            find_program(&[cloud_hypervisor::PROGRAM]).map(Vmm::CloudHypervisor).ok_or_else(|| {
                RunError::Refused(
                    "--vmm cloud-hypervisor: not in $PATH; give its path with --vmm PATH"
                        .to_owned(),
                )
            })
        }
        VmmChoice::Path(path) if !path.is_file() => Err(RunError::Refused(format!(
            "--vmm {}: no such program; expected qemu, cloud-hypervisor or the path of one",
            path.display()
        ))),
        VmmChoice::Path(path) => {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Ok(if name.contains(cloud_hypervisor::PROGRAM) {
                Vmm::CloudHypervisor(path.clone())
            } else {
                Vmm::Qemu(path.clone())
            })
        }
    }
}

fn choose_accelerator(config: &RunConfig, vmm: &Vmm) -> Result<(Accelerator, String), RunError> {
    let asked = |choice: &str| format!("asked for with --accel {choice}");
    match (config.accel, vmm) {
        (AccelChoice::Kvm, _) => Ok((Accelerator::Kvm, asked("kvm"))),
        (AccelChoice::Tcg, Vmm::Qemu(_)) => Ok((Accelerator::Tcg, asked("tcg"))),
        (AccelChoice::Tcg, Vmm::CloudHypervisor(_)) => Err(RunError::Refused(
            "--accel tcg: cloud-hypervisor runs on KVM only; use --vmm qemu".to_owned(),
        )),
        (AccelChoice::Auto, vmm) => accept(kvm::probe(&config.program), vmm),
    }
}

fn accept(found: KvmProbe, vmm: &Vmm) -> Result<(Accelerator, String), RunError> {
    let reason = format!("KVM {}", found.reason);
    match vmm {
        _ if found.usable => Ok((Accelerator::Kvm, reason)),
        Vmm::Qemu(_) => Ok((Accelerator::Tcg, reason)),
        Vmm::CloudHypervisor(_) => Err(RunError::Refused(format!(
            "cloud-hypervisor runs on KVM only, and {reason}; use --vmm qemu, or --accel kvm to insist"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cloud_hypervisor_without_kvm_is_refused_with_a_way_out() {
        let slow = || KvmProbe { usable: false, reason: "is far too slow".to_owned() };
        let refused = accept(slow(), &Vmm::CloudHypervisor("/c".into())).unwrap_err().to_string();
        assert!(refused.contains("far too slow") && refused.contains("--vmm qemu"), "{refused}");
        let (accelerator, reason) = accept(slow(), &Vmm::Qemu("/q".into())).unwrap();
        assert_eq!((accelerator, reason.as_str()), (Accelerator::Tcg, "KVM is far too slow"));
    }

    #[test]
    fn program_of_another_name_is_a_qemu() {
        assert_eq!(
            find_vmm(&VmmChoice::Path("/bin/sh".into())).unwrap(),
            Vmm::Qemu("/bin/sh".into())
        );
        let missing = find_vmm(&VmmChoice::Path("/no/such".into())).unwrap_err().to_string();
        assert!(missing.contains("--vmm /no/such"), "{missing}");
    }

    #[test]
    fn tag_the_device_or_the_kernel_would_mangle_is_refused() {
        for tag in ["", "two words", "a\"b", "0123456789012345678901234567890123456"] {
            assert!(check_tag(tag).unwrap_err().to_string().starts_with("--tag"), "{tag}");
        }
        check_tag("thinroot-1").unwrap();
    }
}
