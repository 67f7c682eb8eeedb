//! What a process that holds keys asks of the kernel: no core dumps, enough file descriptors.
//!
//! None of it is needed to run: what cannot be had is logged, and the process goes on.

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

/// File descriptors beside those of sessions: the catalog, logs, the admin port.
const DESCRIPTORS_BESIDE: u64 = 1_024;

/// Nobody gets the process's memory: no core dump, no ptrace by the same user (prctl(2), `PR_SET_DUMPABLE`).
pub fn forbid_core_dumps() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = setrlimit(Resource::Core, none) {
        tracing::warn!(%error, "cannot forbid core dumps");
    }
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "cannot forbid others to read this process's memory");
    }
}

/// Two descriptors per client (its own, and its share of the upstreams) and some beside; raised as far as the hard
/// limit lets us.
pub fn raise_descriptor_limit(clients_max: usize) {
    let wanted = 2 * clients_max as u64 + DESCRIPTORS_BESIDE;
    let now = getrlimit(Resource::Nofile);
    let (Some(current), maximum) = (now.current, now.maximum.unwrap_or(u64::MAX)) else { return };
    if current >= wanted {
        return;
    }
    let raised = wanted.min(maximum);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum: now.maximum }) {
        tracing::warn!(%error, current, wanted, "cannot raise the limit on open files");
    } else if raised < wanted {
        tracing::warn!(
            limit = raised,
            wanted,
            "the hard limit on open files is below what listen.clients_max may need: raise it (LimitNOFILE, ulimit -n)"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_are_as_asked() {
        let before = getrlimit(Resource::Nofile);
        raise_descriptor_limit(1);
        assert!(getrlimit(Resource::Nofile).current >= before.current.min(Some(2 + DESCRIPTORS_BESIDE)));
        raise_descriptor_limit(usize::MAX / 4);
        assert_eq!(getrlimit(Resource::Nofile).current, before.maximum, "as far as the hard limit");

        forbid_core_dumps();
        assert_eq!(getrlimit(Resource::Core).current, Some(0));
        assert_eq!(rustix::process::dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
    }
}
