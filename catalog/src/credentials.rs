//! What happens to the versions of a login, decided without a clock or a database.
//!
//! `pending → active → grace → revoked`; at most two are alive (one active, one in its grace). `now` is an argument.

use std::time::Duration;

use jiff::Timestamp;

use crate::login::VersionState;

/// What the decisions need to know of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionStatus {
    /// Its number.
    pub version: i32,
    /// Its state.
    pub state: VersionState,
    /// When it ends by itself.
    pub valid_until: Option<Timestamp>,
}

/// A step to take; steps are taken in the order in which they are given, so that no moment has three versions alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// Accept it no more and forget its secrets.
    Revoke {
        /// Which.
        version: i32,
    },
    /// Accept it until `valid_until` only.
    StartGrace {
        /// Which.
        version: i32,
        /// The first moment at which it is refused.
        valid_until: Timestamp,
    },
    /// Accept it from now on.
    Activate {
        /// Which.
        version: i32,
    },
}

/// Why a rotation cannot be decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RotationError {
    /// The version to activate is not pending.
    #[error("the version to activate is not pending")]
    NotPending,
    /// `now + grace` is beyond what a timestamp holds.
    #[error("the grace is too long")]
    GraceTooLong,
}

/// Whether a password of this version is accepted at `now`: strictly before `valid_until`.
pub fn is_accepted(state: VersionState, valid_until: Option<Timestamp>, now: Timestamp) -> bool {
    let alive = matches!(state, VersionState::Active | VersionState::Grace);
    alive && valid_until.is_none_or(|end| now < end)
}

/// Makes the pending `version` the active one. The one that was active stays for `grace`, but not beyond its own end;
/// with a grace of zero, or when it has ended already, it is revoked. An older one in its grace is revoked in any case.
///
/// # Errors
/// See [`RotationError`].
pub fn rotate(
    versions: &[VersionStatus],
    version: i32,
    grace: Duration,
    now: Timestamp,
) -> Result<Vec<Transition>, RotationError> {
    if !versions.iter().any(|v| v.version == version && v.state == VersionState::Pending) {
        return Err(RotationError::NotPending);
    }
    let grace_end = now.checked_add(grace).map_err(|_| RotationError::GraceTooLong)?;
    let mut steps = Vec::with_capacity(3);
    steps.extend(of_state(versions, VersionState::Grace).map(|v| Transition::Revoke { version: v.version }));
    steps.extend(of_state(versions, VersionState::Active).map(|v| {
        let valid_until = v.valid_until.map_or(grace_end, |end| end.min(grace_end));
        if valid_until <= now {
            Transition::Revoke { version: v.version }
        } else {
            Transition::StartGrace { version: v.version, valid_until }
        }
    }));
    steps.push(Transition::Activate { version });
    Ok(steps)
}

/// The live versions whose time is over at `now`.
pub fn expire(versions: &[VersionStatus], now: Timestamp) -> Vec<Transition> {
    let alive = |v: &&VersionStatus| matches!(v.state, VersionState::Active | VersionState::Grace);
    let over = versions.iter().filter(alive).filter(|v| !is_accepted(v.state, v.valid_until, now));
    over.map(|v| Transition::Revoke { version: v.version }).collect()
}

fn of_state(versions: &[VersionStatus], state: VersionState) -> impl Iterator<Item = &VersionStatus> {
    versions.iter().filter(move |v| v.state == state)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::{Transition::*, VersionState::*, *};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn versions(rows: &[(i32, VersionState, Option<i64>)]) -> Vec<VersionStatus> {
        let row = |(version, state, end): &(i32, VersionState, Option<i64>)| VersionStatus {
            version: *version,
            state: *state,
            valid_until: end.map(at),
        };
        rows.iter().map(row).collect()
    }

    type Row<'a> = (&'a [(i32, VersionState, Option<i64>)], i32, u64, Result<Vec<Transition>, RotationError>);

    #[test]
    fn rotations_at_second_100() {
        let rows: &[Row<'_>] = &[
            (&[(1, Pending, None)], 1, 0, Ok(vec![Activate { version: 1 }])),
            (&[(1, Active, None), (2, Pending, None)], 2, 0, Ok(vec![Revoke { version: 1 }, Activate { version: 2 }])),
            (
                &[(1, Active, None), (2, Pending, None)],
                2,
                60,
                Ok(vec![StartGrace { version: 1, valid_until: at(160) }, Activate { version: 2 }]),
            ),
            // A second rotation during a grace revokes the oldest at once.
            (
                &[(1, Grace, Some(150)), (2, Active, None), (3, Pending, None)],
                3,
                60,
                Ok(vec![
                    Revoke { version: 1 },
                    StartGrace { version: 2, valid_until: at(160) },
                    Activate { version: 3 },
                ]),
            ),
            (
                &[(1, Grace, Some(150)), (2, Active, None), (3, Pending, None)],
                3,
                0,
                Ok(vec![Revoke { version: 1 }, Revoke { version: 2 }, Activate { version: 3 }]),
            ),
            // A grace never prolongs what ends earlier.
            (
                &[(1, Active, Some(120)), (2, Pending, None)],
                2,
                60,
                Ok(vec![StartGrace { version: 1, valid_until: at(120) }, Activate { version: 2 }]),
            ),
            (
                &[(1, Active, Some(100)), (2, Pending, None)],
                2,
                60,
                Ok(vec![Revoke { version: 1 }, Activate { version: 2 }]),
            ),
            (&[(1, Revoked, None), (2, Active, None)], 2, 0, Err(RotationError::NotPending)),
            (&[(1, Active, None)], 2, 0, Err(RotationError::NotPending)),
            (&[(1, Pending, None)], 1, u64::MAX, Err(RotationError::GraceTooLong)),
        ];
        for (given, version, grace, expected) in rows {
            let decided = rotate(&versions(given), *version, Duration::from_secs(*grace), at(100));
            assert_eq!(decided, *expected, "{given:?} {version} {grace}");
        }
    }

    #[test]
    fn acceptance_ends_with_valid_until() {
        for (state, end, now, expected) in [
            (Active, None, 0, true),
            (Active, Some(100), 99, true),
            (Active, Some(100), 100, false),
            (Grace, Some(100), 99, true),
            (Grace, Some(100), 101, false),
            (Pending, None, 0, false),
            (Revoked, None, 0, false),
        ] {
            assert_eq!(is_accepted(state, end.map(at), at(now)), expected, "{state} {end:?} {now}");
        }
    }

    #[test]
    fn expiry_revokes_what_is_over() {
        let given =
            versions(&[(1, Revoked, Some(10)), (2, Grace, Some(100)), (3, Active, Some(101)), (4, Pending, Some(50))]);
        assert_eq!(expire(&given, at(99)), []);
        assert_eq!(expire(&given, at(100)), [Revoke { version: 2 }]);
        assert_eq!(expire(&given, at(200)), [Revoke { version: 2 }, Revoke { version: 3 }]);
    }
}
