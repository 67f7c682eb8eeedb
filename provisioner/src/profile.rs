//! The profiles: what kind of database a workspace is. Each is data, a policy document and the SQL of its schemas.
//!
//! They are compiled into the binary, so that the code, the policy and the schemas of a release cannot be mixed up.

use portcullis_policy::Policy;

/// One profile.
#[derive(Debug)]
pub struct Profile {
    /// The parsed policy document.
    pub policy: Policy,
    /// Its text, as the catalog hands it to the proxies.
    pub policy_text: &'static str,
    /// Migrations in order: version, SQL. All may run again.
    pub migrations: Vec<(&'static str, &'static str)>,
}

impl Profile {
    /// The version that a database is at when all migrations ran.
    #[must_use]
    pub fn schema_version(&self) -> &'static str {
        self.migrations.last().map_or("", |(version, _)| version)
    }
}

/// All profiles of this release.
#[derive(Debug)]
pub struct Profiles(Vec<Profile>);

const MANAGED: (&str, &str) = ("0001_managed_schemas", include_str!("../profiles/managed.sql"));

impl Profiles {
    /// Parses the documents that are built in.
    ///
    /// # Errors
    /// The mistakes of a document: this binary is unusable then.
    pub fn built_in() -> Result<Profiles, portcullis_policy::DocumentErrors> {
        let profile = |policy_text, migrations| {
            Policy::parse(policy_text).map(|policy| Profile { policy, policy_text, migrations })
        };
        Ok(Profiles(vec![
            profile(
                include_str!("../profiles/storage/policy.toml"),
                vec![MANAGED, ("0002_storage", include_str!("../profiles/storage/schema.sql"))],
            )?,
            profile(
                include_str!("../profiles/override/policy.toml"),
                vec![MANAGED, ("0002_tenant_custom", include_str!("../profiles/override/schema.sql"))],
            )?,
            profile(
                include_str!("../profiles/design/policy.toml"),
                vec![("0001_public", include_str!("../profiles/design/schema.sql"))],
            )?,
        ]))
    }

    /// The profile of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Profile> {
        self.0.iter().find(|profile| profile.policy.name() == name)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Profile> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_records_its_schema_version() {
        for profile in Profiles::built_in().unwrap().iter() {
            assert!(!profile.schema_version().is_empty());
            if profile.policy.managed_schemas().iter().any(|schema| schema == "dl_meta") {
                for (version, sql) in &profile.migrations {
                    assert!(sql.contains(&format!("('{version}')")), "{version} does not record itself");
                }
            }
        }
    }

    #[test]
    fn no_kind_collides_with_the_owner_role() {
        for profile in Profiles::built_in().unwrap().iter() {
            for kind in profile.policy.kinds() {
                let name = kind.kind();
                assert!(name != "owner" && !name.ends_with("_a") && !name.ends_with("_b"), "{name}");
            }
        }
    }
}
