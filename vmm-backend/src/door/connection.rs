//! One connection of a VMM: its memory, its queues, and what it may ask for.
//!
//! The handler stands directly on `vhost`'s `BackendReqHandler`: the guest's memory, the rings and
//! their threads belong to one connection and end with it. Requests that are to survive our own
//! restart (INFLIGHT_SHMFD) will enter at `get_inflight_fd`.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Error as VhostError, GpuBackend, Result as VhostResult, VhostUserBackendReqHandlerMut,
};
use vhost_user_backend::VringT;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{GuestAddress, GuestMemoryAtomic, GuestMemoryRegion, GuestRegionMmap};

use super::ring::{Paused, Ring, Service};
use super::vhost_user::{DoorConfig, DoorError, TAG_BYTES};
use super::virtqueue::CHAIN_DESCRIPTORS_MAX;
use crate::sys::guest_memory::GuestMemory;

/// What the kernel's own vhost supports; QEMU and others expect no fewer.
const MEMORY_SLOTS_MAX: usize = 509;

/// How long a queue that is to stop waits for requests at the disk.
const PATIENCE: Duration = Duration::from_secs(30);

const OFFERED: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// One VMM: its memory, its queues, what was negotiated.
pub(super) struct Connection {
    rings: Vec<Arc<Ring>>,
    memory: GuestMemoryAtomic<GuestMemory>,
    regions: Vec<Region>,
    config_space: Option<Vec<u8>>,
    acked_features: u64,
}

/// A region of guest memory, and where the VMM has it.
#[derive(Clone)]
struct Region {
    vmm_address: u64,
    mapping: Arc<GuestRegionMmap<()>>,
}

impl Connection {
    /// The queues with their threads, all waiting to be set up.
    pub(super) fn new(
        service: &Arc<Service>,
        config: &DoorConfig,
    ) -> Result<(Self, Vec<JoinHandle<()>>), DoorError> {
        let mut connection = Self {
            rings: Vec::new(),
            memory: GuestMemoryAtomic::new(GuestMemory::new()),
            regions: Vec::new(),
            config_space: config.tag.as_deref().map(|tag| config_space(tag, config.queues)),
            acked_features: 0,
        };
        let mut threads = Vec::new();
        for index in 0..=usize::from(config.queues) {
            match connection.add_queue(index, service) {
                Ok(thread) => threads.push(thread),
                Err(source) => {
                    connection.close(true);
                    return Err(DoorError::Queue { index, source });
                }
            }
        }
        Ok((connection, threads))
    }

    fn add_queue(&mut self, index: usize, service: &Arc<Service>) -> io::Result<JoinHandle<()>> {
        let size = u16::try_from(CHAIN_DESCRIPTORS_MAX).unwrap_or(u16::MAX);
        let ring = Ring::new(index, Arc::clone(service), self.memory.clone(), size)?;
        let ring = Arc::new(ring);
        let name = if index == 0 { "hiprio".to_owned() } else { format!("queue {index}") };
        let running = Arc::clone(&ring);
        let thread = thread::Builder::new().name(name).spawn(move || running.run())?;
        self.rings.push(ring);
        Ok(thread)
    }

    /// Stops what still runs and sends the threads home; says whether a VMM that was not told
    /// to go left queues running.
    pub(super) fn close(&mut self, is_told: bool) -> bool {
        let is_running = !is_told && self.rings.iter().any(|ring| ring.is_started());
        for ring in &self.rings {
            ring.stop(PATIENCE, is_told);
            ring.pause().leave();
        }
        is_running
    }

    fn ring(&self, index: impl TryInto<usize>) -> VhostResult<&Arc<Ring>> {
        let index = index.try_into().map_err(|_| VhostError::InvalidParam)?;
        self.rings.get(index).ok_or(VhostError::InvalidParam)
    }

    /// The guest address behind an address of the VMM.
    fn guest_address(&self, vmm_address: u64) -> VhostResult<u64> {
        self.regions
            .iter()
            .find_map(|region| {
                let offset = vmm_address.checked_sub(region.vmm_address)?;
                let inside = offset < region.mapping.len();
                inside.then(|| region.mapping.start_addr().0 + offset)
            })
            .ok_or(VhostError::InvalidParam)
    }

    /// Shows `regions` to all queues, each between two requests.
    fn replace_memory(&mut self, mut regions: Vec<Region>) -> VhostResult<()> {
        if regions.len() > MEMORY_SLOTS_MAX {
            return Err(VhostError::InvalidOperation("more memory slots than offered"));
        }
        regions.sort_by_key(|region| region.mapping.start_addr());
        let mappings: Vec<_> = regions.iter().map(|r| Arc::clone(&r.mapping)).collect();
        let memory = if mappings.is_empty() {
            GuestMemory::new()
        } else {
            GuestMemory::from_arc_regions(mappings).map_err(handler_error)?
        };
        let mut paused: Vec<Paused<'_>> = self.rings.iter().map(|ring| ring.pause()).collect();
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).replace(memory);
        paused.iter_mut().for_each(Paused::refresh);
        drop(paused);
        self.regions = regions;
        Ok(())
    }

    fn enable(&self, ring: &Ring, is_enabled: bool) {
        let mut paused = ring.pause();
        ring.vring().set_enabled(is_enabled);
        paused.refresh();
    }
}

/// `struct virtio_fs_config`, little endian.
fn config_space(tag: &str, queues: u16) -> Vec<u8> {
    let mut space = tag.as_bytes().to_vec();
    space.resize(TAG_BYTES, 0);
    space.extend_from_slice(&u32::from(queues).to_le_bytes());
    space
}

fn map_region(address: u64, vmm_address: u64, mapped: VhostResult<Mapping>) -> VhostResult<Region> {
    let mapping = GuestRegionMmap::new(mapped?, GuestAddress(address));
    let mapping = Arc::new(mapping.ok_or(VhostError::InvalidParam)?);
    Ok(Region { vmm_address, mapping })
}

type Mapping = vm_memory::MmapRegion<()>;

fn handler_error(error: impl std::error::Error + Send + Sync + 'static) -> VhostError {
    VhostError::ReqHandlerError(io::Error::other(error))
}

impl VhostUserBackendReqHandlerMut for Connection {
    fn set_owner(&mut self) -> VhostResult<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> VhostResult<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> VhostResult<()> {
        for ring in &self.rings {
            self.enable(ring, false);
        }
        self.acked_features = 0;
        Ok(())
    }

    fn get_features(&mut self) -> VhostResult<u64> {
        Ok(OFFERED)
    }

    fn set_features(&mut self, features: u64) -> VhostResult<()> {
        if features & !OFFERED != 0 {
            return Err(VhostError::FeatureMismatch);
        }
        self.acked_features = features;
        let has_event_idx = features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        // vhost-user, "Ring states": without protocol features rings start enabled.
        let is_enabled = features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0;
        for ring in &self.rings {
            let mut paused = ring.pause();
            ring.vring().set_queue_event_idx(has_event_idx);
            if is_enabled {
                ring.vring().set_enabled(true);
            }
            paused.refresh();
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> VhostResult<Option<Vec<u64>>> {
        let mapped: VhostResult<Vec<Region>> = regions
            .iter()
            .zip(files)
            .map(|(r, file)| map_region(r.guest_phys_addr, r.user_addr, r.mmap_region(file)))
            .collect();
        self.replace_memory(mapped?)?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> VhostResult<()> {
        let ring = self.ring(index)?;
        let size = u16::try_from(num).map_err(|_| VhostError::InvalidParam)?;
        let paused = ring.pause();
        let set = ring.vring().get_mut().get_queue_mut().try_set_size(size);
        drop(paused);
        set.map_err(|_| VhostError::InvalidParam)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> VhostResult<()> {
        let ring = self.ring(index)?;
        let descriptor = self.guest_address(descriptor)?;
        let available = self.guest_address(available)?;
        let used = self.guest_address(used)?;
        let mut paused = ring.pause();
        ring.vring()
            .set_queue_info(descriptor, available, used)
            .map_err(|_| VhostError::InvalidParam)?;
        paused.start().map_err(handler_error)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> VhostResult<()> {
        let ring = self.ring(index)?;
        let base = u16::try_from(base).map_err(|_| VhostError::InvalidParam)?;
        let paused = ring.pause();
        ring.vring().set_queue_next_avail(base);
        drop(paused);
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> VhostResult<VhostUserVringState> {
        // The VMM waits for an answer, also to a question about a queue that is none.
        let Ok(ring) = self.ring(index) else {
            log::warn!("the VMM stops queue {index}, which is none");
            return Ok(VhostUserVringState::new(index, 0));
        };
        let base = ring.stop(PATIENCE, true);
        ring.vring().set_call(None);
        Ok(VhostUserVringState::new(index, u32::from(base)))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> VhostResult<()> {
        let ring = self.ring(index)?;
        if fd.is_none() {
            log::warn!("queue {index}: the VMM wants it polled, which is not done");
        }
        let mut paused = ring.pause();
        paused.set_kick(fd.map(OwnedFd::from)).map_err(handler_error)?;
        paused.start().map_err(handler_error)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> VhostResult<()> {
        self.ring(index)?.vring().set_call(fd);
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> VhostResult<()> {
        self.ring(index)?.vring().set_err(fd);
        Ok(())
    }

    fn get_protocol_features(&mut self) -> VhostResult<VhostUserProtocolFeatures> {
        let mut features = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        if self.config_space.is_some() {
            features |= VhostUserProtocolFeatures::CONFIG;
        }
        Ok(features)
    }

    fn set_protocol_features(&mut self, _features: u64) -> VhostResult<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> VhostResult<u64> {
        u64::try_from(self.rings.len()).map_err(|_| VhostError::BackendInternalError)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> VhostResult<()> {
        let ring = self.ring(index)?;
        self.enable(ring, enable);
        Ok(())
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> VhostResult<Vec<u8>> {
        let space = self.config_space.as_deref().unwrap_or_default();
        let offset = usize::try_from(offset).map_err(|_| VhostError::InvalidParam)?;
        let size = usize::try_from(size).map_err(|_| VhostError::InvalidParam)?;
        // VMMs that know a longer structure read zeros behind ours.
        let known = space.get(offset..).unwrap_or_default();
        let mut part = known[..size.min(known.len())].to_vec();
        part.resize(size, 0);
        Ok(part)
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> VhostResult<()> {
        Err(VhostError::InvalidOperation("the configuration is read-only"))
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> VhostResult<()> {
        Err(VhostError::InvalidOperation("this is no GPU"))
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> VhostResult<File> {
        Err(VhostError::InvalidOperation("no shared objects"))
    }

    fn get_inflight_fd(
        &mut self,
        _inflight: &VhostUserInflight,
    ) -> VhostResult<(VhostUserInflight, File)> {
        Err(VhostError::InvalidOperation("INFLIGHT_SHMFD was not offered"))
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> VhostResult<()> {
        Err(VhostError::InvalidOperation("INFLIGHT_SHMFD was not offered"))
    }

    fn get_max_mem_slots(&mut self) -> VhostResult<u64> {
        u64::try_from(MEMORY_SLOTS_MAX).map_err(|_| VhostError::BackendInternalError)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        fd: File,
        _postcopy_listening: Option<bool>,
    ) -> VhostResult<Option<u64>> {
        let mapped = region.mmap_region(fd);
        let mut regions = self.regions.clone();
        regions.push(map_region(region.guest_phys_addr, region.user_addr, mapped)?);
        self.replace_memory(regions)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> VhostResult<()> {
        let is_it = |known: &Region| {
            known.mapping.start_addr().0 == region.guest_phys_addr
                && known.mapping.len() == region.memory_size
        };
        let mut regions = self.regions.clone();
        regions.retain(|known| !is_it(known));
        if regions.len() == self.regions.len() {
            return Err(VhostError::InvalidParam);
        }
        self.replace_memory(regions)
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> VhostResult<Option<File>> {
        Err(VhostError::InvalidOperation("DEVICE_STATE was not offered"))
    }

    fn check_device_state(&mut self) -> VhostResult<()> {
        Err(VhostError::InvalidOperation("DEVICE_STATE was not offered"))
    }

    fn get_shmem_config(&mut self) -> VhostResult<VhostUserShMemConfig> {
        Err(VhostError::InvalidOperation("SHMEM was not offered"))
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> VhostResult<()> {
        Err(VhostError::InvalidOperation("LOG_SHMFD was not offered"))
    }
}
