//! Every key of the configuration: its name, type, default, what it may be, and what it means. The structures, the
//! checks, `deploy/config.toml` and the table in `docs/operations.md` are made from this one list.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

/// One key, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its name in its section.
    pub name: &'static str,
    /// Its default, as TOML has it.
    pub default: String,
    /// What it may be.
    pub allowed: &'static str,
    /// What it means, a line each.
    pub about: &'static [&'static str],
}

/// One section of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Its name.
    pub name: &'static str,
    /// Its keys, in order.
    pub keys: Vec<Key>,
}

/// A value that cannot be.
#[derive(Debug)]
pub struct Wrong {
    /// The key, with its section.
    pub key: &'static str,
    /// Its value.
    pub value: String,
    /// What it would have to be.
    pub allowed: &'static str,
}

/// A value as TOML has it.
trait Literal {
    fn literal(&self) -> String;
}

macro_rules! literal {
    ($($type:ty: $value:ident => $text:expr),* $(,)?) => {
        $(impl Literal for $type {
            fn literal(&self) -> String {
                let $value = self;
                $text
            }
        })*
    };
}

literal! {
    bool: value => value.to_string(),
    u8: value => value.to_string(),
    u32: value => value.to_string(),
    // Rust's escapes of what may be in a default are TOML's.
    String: value => format!("{value:?}"),
    PathBuf: value => format!("{value:?}"),
}

macro_rules! sections {
    ($(
        $(#[doc = $section_about:literal])*
        $section:ident: $type:ident {
            $(
                $(#[doc = $about:literal])*
                $key:ident: $value:ty = $default:expr, $allowed:literal, $check:expr;
            )*
        }
    )*) => {
        /// The whole configuration.
        #[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct Config {
            $($(#[doc = $section_about])* pub $section: $type,)*
        }

        $(
            $(#[doc = $section_about])*
            #[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
            #[serde(deny_unknown_fields, default)]
            pub struct $type {
                $($(#[doc = $about])* pub $key: $value,)*
            }

            impl Default for $type {
                fn default() -> Self {
                    Self { $($key: $default.into(),)* }
                }
            }
        )*

        impl Config {
            /// Every key there is.
            #[must_use]
            pub fn keys() -> Vec<Section> {
                let defaults = Self::default();
                vec![$(Section {
                    name: stringify!($section),
                    keys: vec![$(Key {
                        name: stringify!($key),
                        default: defaults.$section.$key.literal(),
                        allowed: $allowed,
                        about: &[$($about),*],
                    },)*],
                },)*]
            }

            /// The first value that cannot be.
            pub(super) fn check(&self) -> Result<(), Wrong> {
                $($({
                    let good: fn(&$value) -> bool = $check;
                    if !good(&self.$section.$key) {
                        return Err(Wrong {
                            key: concat!(stringify!($section), ".", stringify!($key)),
                            value: self.$section.$key.literal(),
                            allowed: $allowed,
                        });
                    }
                })*)*
                Ok(())
            }
        }
    };
}

sections! {
    /// The virtual machine.
    vm: Vm {
        /// Memory of a pod that has no limit of its own, in MiB. It is not reserved on the host: a guest takes what it touches.
        memory_mib: u32 = 512_u32, "at least 64, and no more than the host has", |value| *value >= 64;
        /// CPUs of a pod that has no limit of its own. A limit (quota / period, rounded up; a set of CPUs) is taken instead.
        vcpus: u8 = 1_u8, "1 to 32", |value| (1..=32).contains(value);
        /// What the guest's kernel and agent get beside a container's memory limit, in MiB.
        overhead_mib: u32 = 64_u32, "at least 48", |value| *value >= 48;
        /// Appended to the guest kernel's command line. For looking into a guest: "loglevel=7".
        kernel_cmdline: String = "", "at most 1024 printable ASCII characters", |value| cmdline(value);
        /// The guest's console goes to /run/husk/<namespace>/<id>/console.log, which ends after so many KiB.
        console_kib: u32 = 64_u32, "0 to 16384", |value| *value <= 16384;
    }

    /// The pod's network.
    network: Network {
        /// Interfaces of the pod's network namespace that there is room for in its machine.
        interfaces: u8 = 8_u8, "0 to 16", |value| *value <= 16;
        /// What one interface of a pod may send in a second, in KiB; 0: as much as it can. A tenth of a second's worth may go at once.
        sent_kib_s: u32 = 0_u32, "0 to 4294967295", |_| true;
        /// The same in packets.
        sent_packets_s: u32 = 0_u32, "0 to 4294967295", |_| true;
        /// What one interface of a pod gets in a second, in KiB; 0: all that comes. What comes too fast waits in the tap's queue, and is dropped
        /// when that is full.
        received_kib_s: u32 = 0_u32, "0 to 4294967295", |_| true;
        /// The same in packets.
        received_packets_s: u32 = 0_u32, "0 to 4294967295", |_| true;
        /// The host's kernel moves the pod's packets (vhost-net) instead of the VMM. It then reads the guest's rings itself, so a hostile guest
        /// has more of it to attack; packets are not counted, and there are no rates. Only where /dev/vhost-net can be opened and none of the
        /// four limits above is set: else one warning says why not, and the VMM moves the packets.
        vhost: bool = false, "true or false", |_| true;
        /// Connections to localhost of the pod's network namespace that the guest serves at once, and flows of datagrams as well; others
        /// are reset. Fewer where the shim may have less than ten times as many files open. 0: localhost does not reach the guest.
        localhost_connections: u32 = 256_u32, "0 to 400", |value| *value <= 400;
    }

    /// How long something may take. What takes longer has failed: the error names the key.
    limits: Limits {
        /// From the machine's start to the agent's first answer, in seconds.
        ready_s: u32 = 10_u32, "1 to 3600", seconds;
        /// One call of the agent, in seconds.
        call_s: u32 = 30_u32, "1 to 3600", seconds;
        /// One answer of the agent's to Stats or Pids, in seconds. Their callers give 2 s in all.
        query_s: u32 = 1_u32, "1 to 3600", seconds;
        /// One answer of the VMM, which waits for nothing of the guest's, in seconds.
        vmm_s: u32 = 10_u32, "1 to 3600", seconds;
        /// The end of the VMM after it was asked to stop, in seconds; it is killed then.
        stop_s: u32 = 1_u32, "1 to 3600", seconds;
        /// The exit of a container after the agent has killed it, in seconds; its machine is stopped then.
        kill_s: u32 = 5_u32, "1 to 3600", seconds;
        /// Some of the output that is left when a program has ended to be taken, before its exit is reported, in seconds; all of it
        /// has twice as long.
        output_s: u32 = 2_u32, "1 to 3600", seconds;
        /// The same before Delete closes the streams, in seconds. CRI gives Delete 10 s in all.
        delete_output_s: u32 = 4_u32, "1 to 3600", seconds;
        /// A stream of the guest's to say which it is, in seconds.
        stream_s: u32 = 5_u32, "1 to 3600", seconds;
        /// A connection to localhost of the pod's network namespace to be taken in the guest, in seconds; it is reset then.
        forward_s: u32 = 5_u32, "1 to 3600", seconds;
        /// A hook whose document gives it no timeout, in seconds; it is killed then. The kubelet gives a call as long.
        hook_s: u32 = 120_u32, "1 to 3600", seconds;
        /// A logging program (binary://) to be ready, and to end once it was told to, in seconds; it is killed then.
        logger_s: u32 = 12_u32, "1 to 3600", seconds;
        /// containerd to take one event, in seconds; it is sent again then.
        event_s: u32 = 5_u32, "1 to 3600", seconds;
        /// containerd to take all events before the shim ends, in seconds. It gives Shutdown 3 s.
        events_s: u32 = 2_u32, "1 to 3600", seconds;
    }

    /// The log.
    log: Log {
        /// How much is logged.
        level: String = "info", "off, error, warn, info or debug", |value| value.parse::<log::LevelFilter>().is_ok();
        /// Beside containerd's log, the pod's lines go to /run/husk/<namespace>/<id>/shim.log, for `husk logs`: the last so many
        /// KiB. 0: none.
        file_kib: u32 = crate::logger::KEPT_KIB, "0 to 16384", |value| *value <= 16384;
        /// Where the time stamps of every pod's start are appended, for `husk bench`; empty: nowhere. The file ends at 1 MiB.
        phases_file: PathBuf = "", "an absolute path, or empty", |value| value.as_os_str().is_empty() || value.is_absolute();
    }
}

/// The kernel's own has 2047, with ours.
fn cmdline(value: &str) -> bool {
    value.len() <= 1024 && value.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic())
}

fn seconds(value: &u32) -> bool {
    (1..=3600).contains(value)
}

macro_rules! limits {
    ($($name:ident: $key:ident),* $(,)?) => {
        impl Limits {
            $(
                #[doc = concat!("`", stringify!($key), "` as a duration.")]
                #[must_use]
                pub fn $name(&self) -> Duration {
                    Duration::from_secs(self.$key.into())
                }
            )*
        }
    };
}

limits! {
    ready: ready_s,
    call: call_s,
    query: query_s,
    vmm: vmm_s,
    stop: stop_s,
    kill: kill_s,
    output: output_s,
    delete_output: delete_output_s,
    stream: stream_s,
    forward: forward_s,
    hook: hook_s,
    logger: logger_s,
    event: event_s,
    events: events_s,
}
