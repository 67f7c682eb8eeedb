//! Intent compared with what was observed: the steps that make the one into the other. Pure; the same function serves the
//! first provisioning, the repair of what somebody dropped or altered by hand, a migration and a rotation.
//!
//! A step is data; what it does to a server is in [`super::step`].

use super::intent::Intent;
use super::observe::{Cluster, Fingerprints, Inside, Membership, Observed, RoleFact};
use super::step::{Duty, LayOut, Role, Step};

/// The steps, in order.
#[must_use]
pub fn plan(intent: &Intent, observed: &Observed) -> Vec<Step> {
    let cluster = &observed.cluster;
    let mut steps = Vec::new();
    if cluster.superuser && !cluster.open_databases.is_empty() {
        steps.push(Step::CloseDatabases(cluster.open_databases.clone()));
    }
    plan_roles(intent, cluster, &mut steps);
    plan_memberships(intent, cluster, &mut steps);
    plan_database(intent, cluster, &mut steps);
    let fresh = cluster.database.is_none();
    if let Some(layout) = plan_inside(intent, observed, fresh) {
        steps.push(Step::LayOut(layout));
    }
    steps
}

fn wanted_roles(intent: &Intent, superuser: bool) -> Vec<Role> {
    let role =
        |name: &str, duty: Duty| Role { name: name.to_owned(), duty, connections_max: -1, temp_file_limit: None };
    let mut roles = vec![role(&intent.owner, Duty::Owner)];
    roles.extend(intent.internal.iter().map(|name| role(name, Duty::Group)));
    for kind in &intent.kinds {
        roles.push(role(&kind.group, Duty::Group));
        let active = role(&kind.active.name, Duty::Active { verifier: kind.active.verifier.clone() });
        for login in [active, role(&kind.idle, Duty::Idle)] {
            let temp_file_limit = kind.temp_file_limit.clone().filter(|_| superuser);
            roles.push(Role { connections_max: intent.connections_max, temp_file_limit, ..login });
        }
    }
    roles
}

fn plan_roles(intent: &Intent, cluster: &Cluster, steps: &mut Vec<Step>) {
    for role in wanted_roles(intent, cluster.superuser) {
        let Some(fact) = cluster.roles.get(&role.name) else {
            steps.push(Step::CreateRole(role));
            continue;
        };
        let settings: Vec<String> =
            role.temp_file_limit.iter().map(|limit| format!(":temp_file_limit={limit}")).collect();
        let same_settings =
            if cluster.superuser { fact.settings.iter().eq(settings.iter()) } else { fact.settings.is_empty() };
        if !same_settings || !same_attributes(&role, fact) {
            let mut reset_in: Vec<String> = fact
                .settings
                .iter()
                .filter_map(|setting| setting.split_once(':'))
                .map(|(db, _)| db.to_owned())
                .collect();
            reset_in.dedup();
            steps.push(Step::AlterRole { role, demote: fact.elevated, reset_in });
        }
    }
}

fn same_attributes(role: &Role, fact: &RoleFact) -> bool {
    let login = matches!(role.duty, Duty::Active { .. });
    let inherit = matches!(role.duty, Duty::Owner | Duty::Group);
    let password = match &role.duty {
        Duty::Active { verifier } => Some(verifier.as_str()),
        Duty::Owner | Duty::Group | Duty::Idle => None,
    };
    fact.login == login
        && fact.inherit == inherit
        && !fact.elevated
        && !fact.expires
        && fact.connections_max == role.connections_max
        && (!fact.password_known || fact.password.as_deref() == password)
}

fn plan_memberships(intent: &Intent, cluster: &Cluster, steps: &mut Vec<Step>) {
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for kind in &intent.kinds {
        wanted.push((&kind.group, &kind.active.name));
        wanted.push((&kind.group, &kind.idle));
    }
    let is_ours = |membership: &Membership| {
        !membership.unusual && wanted.contains(&(membership.role.as_str(), membership.member.as_str()))
    };
    for membership in cluster.memberships.iter().filter(|membership| membership.member != cluster.me) {
        if !is_ours(membership) {
            steps.push(Step::Leave { role: membership.role.clone(), member: membership.member.clone() });
        }
    }
    for (role, member) in &wanted {
        if !cluster.memberships.iter().any(|m| is_ours(m) && m.role == *role && m.member == *member) {
            steps.push(Step::Join { role: (*role).to_owned(), member: (*member).to_owned() });
        }
    }
    // Without superuser we may make a role the owner of something only as its member.
    if !cluster.superuser && !cluster.memberships.iter().any(|m| m.role == intent.owner && m.member == cluster.me) {
        steps.push(Step::Join { role: intent.owner.clone(), member: cluster.me.clone() });
    }
}

fn plan_database(intent: &Intent, cluster: &Cluster, steps: &mut Vec<Step>) {
    let (database, owner) = (intent.database.clone(), intent.owner.clone());
    let wanted = intent.database_privileges();
    let Some(fact) = &cluster.database else {
        steps.push(Step::CreateDatabase { database: database.clone(), owner });
        steps.push(Step::AdmitOnly { database, strip: vec![String::new()], grant: wanted });
        return;
    };
    if fact.owner != owner {
        steps.push(Step::OwnDatabase { database: database.clone(), owner });
    }
    if fact.privileges != wanted {
        let mut strip: Vec<String> = fact
            .privileges
            .difference(&wanted)
            .filter_map(|privilege| privilege.rsplit_once('='))
            .map(|(grantee, _)| grantee.to_owned())
            .collect();
        strip.dedup();
        steps.push(Step::AdmitOnly { database, strip, grant: wanted });
    }
}

fn plan_inside(intent: &Intent, observed: &Observed, fresh: bool) -> Option<LayOut> {
    let superuser = observed.cluster.superuser;
    let all = LayOut { migrate: true, superuser, ..LayOut::default() };
    let (Some(inside), Some(record), false) = (&observed.inside, &observed.record, fresh) else { return Some(all) };
    if record.major != observed.cluster.major {
        return Some(all);
    }
    let changed = changed(&record.objects, inside);
    let open = superuser && inside.functions_open > 0;
    let new_intent = record.intent != intent.digest();
    if changed.is_empty() && !open && !new_intent {
        return None;
    }
    let stale = |word: &str| -> Vec<String> {
        let there = changed.iter().filter(|name| inside.objects.contains_key(*name));
        there.filter_map(|name| name.strip_prefix(word)).map(str::to_owned).collect()
    };
    Some(LayOut {
        migrate: new_intent || changed.iter().any(|name| !is_privilege(name)),
        stale_views: stale("view "),
        stale_triggers: stale("event trigger "),
        changed: summary(changed, inside),
        superuser,
    })
}

fn changed(recorded: &Fingerprints, inside: &Inside) -> Vec<String> {
    let differs = |(name, digest): &(&String, &String)| inside.objects.get(*name) != Some(*digest);
    // A table that was not there then has its rights yet to be given.
    let relation = |name: &&String| {
        ["grants on table ", "grants on view ", "grants on materialized view "]
            .iter()
            .any(|word| name.starts_with(word))
    };
    let new = inside.objects.keys().filter(relation).filter(|name| !recorded.contains_key(*name));
    recorded.iter().filter(differs).map(|(name, _)| name).chain(new).cloned().collect()
}

fn is_privilege(name: &str) -> bool {
    name.starts_with("grants on ") || name == "default privileges" || name.starts_with("event trigger ")
}

/// What was in a schema that is gone, and what was granted on a thing that is gone, goes without saying.
fn summary(changed: Vec<String>, inside: &Inside) -> Vec<String> {
    let gone: Vec<&str> = changed
        .iter()
        .filter(|name| !inside.objects.contains_key(*name) && !is_privilege(name))
        .filter_map(|name| name.split_once(' ').map(|(_, object)| object))
        .collect();
    let implied = |name: &str| {
        gone.iter().any(|object| {
            let within = name.contains(&format!(" {object}."));
            within || (name.starts_with("grants on ") && name.ends_with(&format!(" {object}")))
        })
    };
    changed.iter().filter(|name| !implied(name)).cloned().collect()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
