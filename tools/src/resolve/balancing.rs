//! Policies that move experts, from `[balance]`.

use super::Given;
use crate::error::Error;
use moeplan_sim::balance::{Balancing, POLICIES, Schedule};

/// The policies of these names, asked as `--every`, `--drift` and `[balance]` say; `field` of `group` named them.
///
/// # Errors
/// A name that is none, or a number out of range.
pub fn balancing(
    given: &Given,
    names: &[String],
    (group, field): (&'static str, &str),
) -> Result<Vec<Balancing>, Error> {
    let wanted = given.flags.balance.over(&given.file.balance);
    let place = |field: &str| given.place(&["balance"], None, field);
    let every = wanted.every.unwrap_or(4);
    if every == 0 {
        return Err(Error::input(place("every"), "expected at least 1, found 0"));
    }
    if let Some(drift) = wanted.drift.filter(|drift| !(0.0..=1.0).contains(drift)) {
        let message = format!("expected 0 to 1, found {drift}");
        return Err(Error::input(place("drift"), message));
    }
    let extra_slots = wanted.extra_slots.unwrap_or(1);
    if !(1..=64).contains(&extra_slots) {
        let message = format!("expected 1 to 64, found {extra_slots}");
        return Err(Error::input(place("extra-slots"), message));
    }
    if let Some(unknown) = names.iter().find(|name| !POLICIES.contains(&name.as_str())) {
        let message = format!("expected {}, found `{unknown}`", POLICIES.join(", "));
        return Err(Error::input(given.place(&[group], None, field), message));
    }
    let policy = |name: &String| Balancing {
        policy: name.clone(),
        extra_slots,
        expert_groups: wanted.expert_groups,
        schedule: Schedule {
            every,
            drift: wanted.drift,
        },
    };
    Ok(names.iter().map(policy).collect())
}
