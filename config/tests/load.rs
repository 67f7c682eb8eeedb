//! Loading a configuration: the annotated files, overrides, secrets, and what is said about mistakes.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::{collections::BTreeSet, fs, path::PathBuf};

use portcullis_config::{ConfigError, Environment, ProvisionerConfig, ProxyConfig, SidecarAddress};

/// 32 bytes, of which none may show anywhere.
const KEY: &str = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTMyISE=";

fn annotated(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn environment(pairs: &[(&str, &str)]) -> Environment {
    pairs.iter().copied().collect()
}

/// A file of its own that goes when the test ends.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str, text: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("portcullis-config-{}-{name}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("file"), text).unwrap();
        Self(directory)
    }

    fn path(&self) -> PathBuf {
        self.0.join("file")
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The least that a proxy needs.
const PROXY: &str = "[tls]\ncertificate_file = 'a'\nkey_file = 'b'\n[catalog]\nurl = 'postgres://p:hunter2@h/d'\n";

fn proxy(name: &str, text: &str, pairs: &[(&str, &str)]) -> Result<ProxyConfig, ConfigError> {
    let file = Temporary::new(name, text);
    let mut pairs = pairs.to_vec();
    if !pairs.iter().any(|(name, _)| name.contains("PROXY_KEY")) && !text.contains("proxy_key") {
        pairs.push(("PORTCULLIS__KEYS__PROXY_KEY", KEY));
    }
    ProxyConfig::load(Some(&file.path()), &environment(&pairs))
}

#[test]
fn the_annotated_proxy_file_states_the_defaults() {
    let keys = [("PORTCULLIS__KEYS__PROXY_KEY", KEY)];
    let stated = ProxyConfig::load(Some(&annotated("proxy.toml")), &environment(&keys)).unwrap();
    let required = [
        keys[0],
        ("PORTCULLIS__TLS__CERTIFICATE_FILE", "proxy.crt"),
        ("PORTCULLIS__TLS__KEY_FILE", "proxy.key"),
        ("PORTCULLIS__CATALOG__URL", "postgres://portcullis_proxy@127.0.0.1:5432/portcullis"),
    ];
    let default = ProxyConfig::load(None, &environment(&required)).unwrap();
    assert_eq!(format!("{stated:#?}"), format!("{default:#?}"));
    assert_eq!(stated.catalog.url.expose(), default.catalog.url.expose());
}

#[test]
fn the_annotated_provisioner_file_states_the_defaults() {
    let keys = [("PORTCULLIS__KEYS__PROXY_KEY", KEY), ("PORTCULLIS__KEYS__KEY_OF_KEYS", KEY)];
    let stated = ProvisionerConfig::load(Some(&annotated("provisioner.toml")), &environment(&keys)).unwrap();
    let required = [
        keys[0],
        keys[1],
        ("PORTCULLIS__CATALOG__URL", "postgres://portcullis_provisioner@127.0.0.1:5432/portcullis"),
        ("PORTCULLIS__PUBLIC__HOST", "db.example.com"),
        ("PORTCULLIS__SERVERS__MAIN__HOST", "127.0.0.1"),
        ("PORTCULLIS__SERVERS__MAIN__USER", "postgres"),
        ("PORTCULLIS__SERVERS__MAIN__TLS", "disable"),
    ];
    let default = ProvisionerConfig::load(None, &environment(&required)).unwrap();
    assert_eq!(format!("{stated:#?}"), format!("{default:#?}"));
}

/// With every comment that is an assignment made one, an annotated file has each key once, and no other is known:
/// `Debug` of a configuration names every key there is.
#[test]
fn the_annotated_files_state_every_key() {
    for (file, debug) in [
        ("proxy.toml", {
            let keys = [
                ("PORTCULLIS__KEYS__PROXY_KEY", KEY),
                ("PORTCULLIS__TLS__CLIENT_CA_FILE", "ca.crt"),
                ("PORTCULLIS__TLS__CERTIFICATES__EU__CERTIFICATE_FILE", "eu.crt"),
                ("PORTCULLIS__TLS__CERTIFICATES__EU__KEY_FILE", "eu.key"),
            ];
            format!("{:#?}", ProxyConfig::load(Some(&annotated("proxy.toml")), &environment(&keys)).unwrap())
        }),
        ("provisioner.toml", {
            let keys = [("PORTCULLIS__KEYS__PROXY_KEY", KEY), ("PORTCULLIS__KEYS__KEY_OF_KEYS", KEY)];
            format!(
                "{:#?}",
                ProvisionerConfig::load(Some(&annotated("provisioner.toml")), &environment(&keys)).unwrap()
            )
        }),
    ] {
        let text = fs::read_to_string(annotated(file)).unwrap();
        let assigned =
            text.lines().filter_map(|line| line.trim_start_matches("# ").split_once(" = ")).map(|(key, _)| key);
        let stated: BTreeSet<_> = assigned.filter(|key| !key.contains(' ')).collect();
        let fields = debug.lines().filter_map(|line| line.trim().split_once(": "));
        let fields = fields.filter(|(_, value)| !value.ends_with(['{', '(', '[']));
        let inner: &[&str] = &["host", "port", "name"];
        let known: BTreeSet<_> = fields.map(|(name, _)| name).filter(|name| !name.starts_with('"')).collect();
        let missing: Vec<_> = known.difference(&stated).filter(|name| !inner.contains(name)).collect();
        assert!(missing.is_empty(), "{file} does not state {missing:?}");
    }
}

#[test]
fn the_environment_wins_over_the_file() {
    let text = format!("{PROXY}[listen]\naddress = '127.0.0.1:1'\nclients_max = 5\n[admin]\ntls = true\n");
    let pairs = [
        ("PORTCULLIS__LISTEN__ADDRESS", "0.0.0.0:7000"),
        ("PORTCULLIS__ADMIN__TLS", "false"),
        ("PORTCULLIS__ADMIN__SIDECAR", "unix:/run/portcullis/api.sock"),
        ("PORTCULLIS__POOL__SIZE_MAX", "7"),
        ("PORTCULLIS_ADMIN_URL", "not ours"),
        ("PATH", "/bin"),
    ];
    let config = proxy("environment", &text, &pairs).unwrap();
    assert_eq!(config.listen.address.to_string(), "0.0.0.0:7000");
    assert_eq!((config.listen.clients_max, config.pool.size_max, config.admin.tls), (5, 7, false));
    assert_eq!(config.admin.sidecar, SidecarAddress::Unix("/run/portcullis/api.sock".into()));
}

#[test]
fn secrets_come_from_files_and_keep_the_most_specific_source() {
    let secret = Temporary::new("secret", "from-the-file\n");
    let path = secret.path().display().to_string();
    let with_file = format!("{PROXY}password_file = '{path}'\n");
    let config = proxy("secret-key", &with_file, &[]).unwrap();
    assert_eq!(config.catalog.password.unwrap().expose(), "from-the-file");
    let config = proxy("secret-env", PROXY, &[("PORTCULLIS__CATALOG__PASSWORD_FILE", &path)]).unwrap();
    assert_eq!(config.catalog.password.unwrap().expose(), "from-the-file");
    let config = proxy("secret-over", &with_file, &[("PORTCULLIS__CATALOG__PASSWORD", "direct")]).unwrap();
    assert_eq!(config.catalog.password.unwrap().expose(), "direct");
    let direct = format!("{PROXY}password = 'direct'\n");
    let config = proxy("secret-over2", &direct, &[("PORTCULLIS__CATALOG__PASSWORD_FILE", &path)]).unwrap();
    assert_eq!(config.catalog.password.unwrap().expose(), "from-the-file");

    let key = Temporary::new("hex", &format!("{}\n", "0a".repeat(32)));
    let config = proxy("hex-key", PROXY, &[("PORTCULLIS__KEYS__PROXY_KEY_FILE", &key.path().display().to_string())]);
    assert_eq!(config.unwrap().keys.proxy_key.expose(), &[10; 32]);
}

#[test]
fn mistakes_name_key_line_value_and_remedy() {
    /// Name, what the file adds, variables, what the error must contain.
    type Row<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a [&'a str]);
    let rows: &[Row<'_>] = &[
        (
            "unknown",
            "[listen]\n# comment\nadress = 'x'\n",
            &[],
            &["file:8: unknown key `listen.adress`; did you mean `listen.address`?"],
        ),
        ("unknown-table", "[lisen]\n", &[], &["file:6: unknown key `lisen`"]),
        ("unknown-top", "[pool]\nnothing_like_it = 1\n", &[], &["file:7: unknown key `pool.nothing_like_it`"]),
        (
            "unknown-variable",
            "",
            &[("PORTCULLIS__LISTEN__CLIENT_MAX", "3")],
            &[
                "environment variable PORTCULLIS__LISTEN__CLIENT_MAX: unknown key `listen.client_max`; did you mean `listen.clients_max`?",
            ],
        ),
        (
            "range",
            "[pool]\nsize_max = 0\n",
            &[],
            &["file:7: `pool.size_max` is 0; expected a whole number from 1 to 10000"],
        ),
        (
            "type",
            "[pool]\nsize_max = 'many'\n",
            &[],
            &["`pool.size_max` is \"many\"; expected a whole number from 1 to 10000"],
        ),
        ("float", "[pool]\nsize_max = 1.5\n", &[], &["`pool.size_max` is a float; expected a whole number"]),
        ("flag", "[admin]\ntls = 'yes'\n", &[], &["`admin.tls` is \"yes\"; expected true or false"]),
        (
            "address",
            "[listen]\naddress = 'localhost'\n",
            &[],
            &["`listen.address` is \"localhost\"; expected an IP address and a port"],
        ),
        (
            "plaintext",
            "[listen]\nplaintext_address = '0.0.0.0:5432'\n",
            &[],
            &["file:7: `listen.plaintext_address` is \"0.0.0.0:5432\"; expected a loopback address and a port"],
        ),
        (
            "plaintext-name",
            "[listen]\nplaintext_address = '192.0.2.1:5432'\nunix_socket = 'relative'\nunix_socket_mode = '0o77'\n",
            &[],
            &[
                "expected a loopback address",
                "`listen.unix_socket` is \"relative\"; expected an absolute path",
                "`listen.unix_socket_mode` is \"0o77\"; expected three or four octal digits",
            ],
        ),
        (
            "mode",
            "[listen]\nunix_socket_mode = '4777'\n",
            &[],
            &["`listen.unix_socket_mode` is \"4777\"; expected three or four octal digits"],
        ),
        (
            "memory",
            "[limits]\nmemory_bytes_max = 1000\n",
            &[],
            &["`limits.memory_bytes_max` is 1000; expected 0, or a whole number from 67108864 to 1099511627776"],
        ),
        ("clients", "", &[("PORTCULLIS__TLS__CLIENT_MAP_FILE", "clients.toml")], &["`tls.client_ca_file` is required"]),
        (
            "certificates",
            "[tls.certificates.eu]\nkey_file = 'eu.key'\n",
            &[],
            &["`tls.certificates.eu.certificate_file` is required"],
        ),
        ("format", "[log]\nformat = 'xml'\n", &[], &["`log.format` is \"xml\"; expected text or json"]),
        (
            "variable-value",
            "",
            &[("PORTCULLIS__POOL__SIZE_MAX", "-1")],
            &["environment variable PORTCULLIS__POOL__SIZE_MAX: `pool.size_max` is \"-1\"; expected a whole number"],
        ),
        ("syntax", "[pool\n", &[], &["file:6: not valid TOML"]),
        (
            "several",
            "[pool]\nsize_max = 0\nwaiters_max = 0\nx = 1\n",
            &[],
            &["pool.size_max", "pool.waiters_max", "pool.x"],
        ),
    ];
    for (name, text, pairs, expected) in rows {
        let error = proxy(name, &format!("{PROXY}{text}"), pairs).unwrap_err().to_string();
        for part in *expected {
            assert!(error.contains(part), "{name}: {error}");
        }
    }
}

#[test]
fn doors_certificates_and_their_files() {
    let text = "[listen]\nplaintext_address = '[::1]:6431'\nunix_socket = '/run/p/.s.PGSQL.6432'\nunix_socket_mode = '0600'\n\
                [tls.certificates.eu]\ncertificate_file = 'eu.crt'\nkey_file = 'eu.key'\n";
    let pairs = [("PORTCULLIS__TLS__CLIENT_CA_FILE", "ca.crt"), ("PORTCULLIS__TLS__CLIENT_CERTIFICATES", "require")];
    let config = proxy("doors", &format!("{PROXY}{text}"), &pairs).unwrap();
    let listen = config.listen;
    assert_eq!(listen.plaintext_address.unwrap().to_string(), "[::1]:6431");
    assert_eq!((listen.unix_socket.unwrap(), listen.unix_socket_mode), (PathBuf::from("/run/p/.s.PGSQL.6432"), 0o600));
    let certificate = &config.tls.certificates[0];
    assert_eq!((certificate.name.as_str(), &certificate.key_file), ("eu", &PathBuf::from("eu.key")));
    let client = config.tls.client.unwrap();
    assert_eq!(client.client_certificates, portcullis_config::ClientCertificates::Require);
    assert!(client.client_map_file.is_none() && client.client_crl_file.is_none());
}

#[test]
fn what_is_missing_is_named_with_all_ways_to_give_it() {
    let error = ProxyConfig::load(None, &Environment::default()).unwrap_err().to_string();
    for part in [
        "`tls.certificate_file` is required: set it in the file or as PORTCULLIS__TLS__CERTIFICATE_FILE",
        "`tls.key_file` is required",
        "`catalog.url` is required: set it in the file or as PORTCULLIS__CATALOG__URL, or name a file by `catalog.url_file` or PORTCULLIS__CATALOG__URL_FILE",
        "`keys.proxy_key` is required",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let error = ProvisionerConfig::load(None, &Environment::default()).unwrap_err().to_string();
    for part in ["`servers.main.host` is required", "`public.host` is required", "`keys.key_of_keys` is required"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let error = ProxyConfig::load(Some(&PathBuf::from("/nowhere/x.toml")), &Environment::default()).unwrap_err();
    assert!(error.to_string().contains("cannot read /nowhere/x.toml: No such file"), "{error}");
}

#[test]
fn servers() {
    let base = "[catalog]\nurl = 'x'\n[public]\nhost = 'h'\n";
    let load = |name: &str, text: &str| {
        let file = Temporary::new(name, &format!("{base}{text}"));
        let keys = [("PORTCULLIS__KEYS__PROXY_KEY", KEY), ("PORTCULLIS__KEYS__KEY_OF_KEYS", KEY)];
        ProvisionerConfig::load(Some(&file.path()), &environment(&keys)).map_err(|error| error.to_string())
    };
    let two = "[servers.a]\nhost = 'h1'\nuser = 'u'\ntls = 'require'\nproxy_port = 7\n\
               [servers.b-2]\nhost = 'h2'\nuser = 'u'\ntls = 'verify-full'\nca_file = 'ca'\n";
    let servers = load("servers-two", two).unwrap().servers;
    assert_eq!(servers.keys().collect::<Vec<_>>(), ["a", "b-2"]);
    assert_eq!((servers["a"].port, servers["a"].proxy_port, servers["b-2"].proxy_port), (5432, Some(7), None));
    for (name, text, expected) in [
        (
            "servers-no-ca",
            "[servers.a]\nhost = 'h'\nuser = 'u'\ntls = 'verify-full'\n",
            "`servers.a.ca_file` is required",
        ),
        ("servers-name", "[servers.Main]\nhost = 'h'\nuser = 'u'\ntls = 'disable'\n", "expected a name of 1 to 40"),
        (
            "servers-key",
            "[servers.a]\nhost = 'h'\nuser = 'u'\ntls = 'disable'\nprot = 1\n",
            "did you mean `servers.a.port`",
        ),
        ("servers-tls", "[servers.a]\nhost = 'h'\nuser = 'u'\n", "`servers.a.tls` is required"),
    ] {
        let error = load(name, text).unwrap_err();
        assert!(error.contains(expected), "{name}: {error}");
    }
}

#[test]
fn nothing_secret_shows_in_debug_or_in_errors() {
    let config =
        proxy("debug", &format!("{PROXY}password = 'hunter3'\n[admin]\nmetrics_token = 'hunter4'\n"), &[]).unwrap();
    let debug = format!("{config:?} {:?}", environment(&[("PORTCULLIS__KEYS__PROXY_KEY", "hunter5")]));
    let bad_key = proxy("bad-key", &format!("{PROXY}[keys]\nproxy_key = 'hunter6'\n"), &[]).unwrap_err();
    let bad_type = proxy("bad-type", &format!("{PROXY}password = 12345678\n"), &[]).unwrap_err();
    let both = proxy("both", &format!("{PROXY}password = 'hunter7'\npassword_file = '/x'\n"), &[]).unwrap_err();
    assert!(
        bad_key.to_string().contains("`keys.proxy_key` is ***; expected 32 bytes as base64 or hexadecimal"),
        "{bad_key}"
    );
    assert!(bad_type.to_string().contains("`catalog.password` is ***"), "{bad_type}");
    assert!(both.to_string().contains("`catalog.password` and `catalog.password_file` are both given"), "{both}");
    for text in [debug, format!("{bad_key} {bad_key:?} {bad_type} {bad_type:?} {both} {both:?}")] {
        assert!(!text.contains("hunter") && !text.contains("12345678") && !text.contains("c2VjcmV0"), "{text}");
    }
}
