//! cloud-hypervisor command lines.
