//! Offsets and values of the registers (virtio 1.2, 4.2.2).

/// "virt".
pub(super) const MAGIC: u32 = 0x7472_6976;
/// The version of the register layout.
pub(super) const LAYOUT_VERSION: u32 = 2;
/// "HUSK": drivers look at it in no known way.
pub(super) const VENDOR: u32 = u32::from_le_bytes(*b"HUSK");

pub(super) const MAGIC_VALUE: u64 = 0x000;
pub(super) const VERSION: u64 = 0x004;
pub(super) const DEVICE_ID: u64 = 0x008;
pub(super) const VENDOR_ID: u64 = 0x00c;
pub(super) const DEVICE_FEATURES: u64 = 0x010;
pub(super) const DEVICE_FEATURES_SEL: u64 = 0x014;
pub(super) const DRIVER_FEATURES: u64 = 0x020;
pub(super) const DRIVER_FEATURES_SEL: u64 = 0x024;
pub(super) const QUEUE_SEL: u64 = 0x030;
pub(super) const QUEUE_NUM_MAX: u64 = 0x034;
pub(super) const QUEUE_NUM: u64 = 0x038;
pub(super) const QUEUE_READY: u64 = 0x044;
/// Writing a queue's index notifies the device: KVM takes these writes (ioeventfd).
pub const QUEUE_NOTIFY: u64 = 0x050;
pub(super) const INTERRUPT_STATUS: u64 = 0x060;
/// Writing an interrupt's causes acknowledges it: KVM takes the usual one, [`USED_BUFFER`] alone (ioeventfd).
pub const INTERRUPT_ACK: u64 = 0x064;
pub(super) const STATUS: u64 = 0x070;
pub(super) const QUEUE_DESC_LOW: u64 = 0x080;
pub(super) const QUEUE_DESC_HIGH: u64 = 0x084;
pub(super) const QUEUE_DRIVER_LOW: u64 = 0x090;
pub(super) const QUEUE_DRIVER_HIGH: u64 = 0x094;
pub(super) const QUEUE_DEVICE_LOW: u64 = 0x0a0;
pub(super) const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
/// Length of the selected shared memory region: all ones, there is none (4.2.2, SHMLen).
pub(super) const SHM_LEN_LOW: u64 = 0x0b0;
pub(super) const SHM_BASE_HIGH: u64 = 0x0bc;
pub(super) const CONFIG_GENERATION: u64 = 0x0fc;
/// From here on the device's configuration space.
pub(super) const CONFIG: u64 = 0x100;

/// Interrupt status: a used buffer.
pub const USED_BUFFER: u32 = 1;
/// Interrupt status: the configuration changed.
pub(super) const CONFIG_CHANGE: u32 = 2;

/// Device status bits (2.1).
pub(super) const ACKNOWLEDGE: u32 = 1;
pub(super) const DRIVER: u32 = 2;
pub(super) const DRIVER_OK: u32 = 4;
pub(super) const FEATURES_OK: u32 = 8;
pub(super) const NEEDS_RESET: u32 = 0x40;
pub(super) const FAILED: u32 = 0x80;
