//! TLS material: certificate and key files to what rustls works with.
//!
//! Promises: ring is the only cryptography; the peer's certificate and host name are always checked, there is no switch
//! against it. Refuses, naming the file and why: files that hold nothing usable, broken certificates, keys that are
//! encrypted or belong to another certificate. Called by `cli` (so that a mistake is known before anything starts), by
//! the link to the broker and by the clients of HTTP backends.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::ClientConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{InconsistentKeys, RootCertStore};

use crate::config::{ClientCertificate, Tls};
use crate::files::{self, read_bounded, why};
use crate::text::escape_bytes;

/// Largest certificate or key file taken, in bytes: the bundle of all public authorities has a quarter of it.
const FILE_MAX: u64 = 1 << 20;

/// Makes ring the process's provider, for whoever does not name one; call it before anything speaks TLS.
pub fn install_provider() {
    // it fails only if there is one already
    let _ = ring::default_provider().install_default();
}

/// What the link speaks TLS with.
pub fn client_config(tls: &Tls) -> Result<Arc<ClientConfig>, TlsError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Rustls)?
        .with_root_certificates(anchors(trusted(tls.ca_file.as_deref())?));
    let config = match &tls.client {
        None => config.with_no_client_auth(),
        Some(client) => {
            let chain = certificates(&client.cert_file)?;
            let key = private_key(&client.key_file)?;
            config.with_client_auth_cert(chain, key).map_err(|error| unfit(client, error))?
        }
    };
    Ok(Arc::new(config))
}

/// The certificates that are trusted, each of which works: those in `ca_file`, else the system's.
pub fn trusted(ca_file: Option<&Path>) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    match ca_file {
        Some(file) => trusted_by_file(file),
        None => trusted_by_system(),
    }
}

/// The cryptography there is.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Why there is no TLS.
#[derive(Debug)]
pub enum TlsError {
    Unreadable { file: PathBuf, why: String },
    NoCertificate { file: PathBuf },
    NoKey { file: PathBuf },
    EncryptedKey { file: PathBuf },
    BrokenPem { file: PathBuf, why: String },
    BrokenCertificate { file: PathBuf, number: usize, why: String },
    UnfitKey { file: PathBuf, why: String },
    WrongKey { cert_file: PathBuf, key_file: PathBuf },
    NoRoots { why: String },
    Rustls(rustls::Error),
}

impl std::error::Error for TlsError {}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { file, why } => write!(f, "{}: cannot read it: {why}", file.display()),
            Self::NoCertificate { file } => {
                write!(f, "{}: there is no certificate in it; a PEM file has `-----BEGIN CERTIFICATE-----`", file.display())
            }
            Self::NoKey { file } => {
                write!(f, "{}: there is no private key in it; a PEM file has `-----BEGIN PRIVATE KEY-----`", file.display())
            }
            Self::EncryptedKey { file } => {
                let file = file.display();
                write!(
                    f,
                    "{file}: the key is encrypted, and nobody is there to type its password; `openssl pkey -in {file} -out NEW` writes one without"
                )
            }
            Self::BrokenPem { file, why } => write!(f, "{}: not a whole PEM file: {why}", file.display()),
            Self::BrokenCertificate { file, number, why } => {
                write!(f, "{}: certificate {number} in it is broken: {why}", file.display())
            }
            Self::UnfitKey { file, why } => {
                write!(f, "{}: the key cannot be used ({why}); RSA, ECDSA and Ed25519 can", file.display())
            }
            Self::WrongKey { cert_file, key_file } => write!(
                f,
                "{}: the key does not belong to the certificate in {}; name the key it was made with",
                key_file.display(),
                cert_file.display()
            ),
            Self::NoRoots { why } => {
                write!(f, "the system has no trusted certificates ({why}); install ca-certificates, or name a CA with `ca_file`")
            }
            Self::Rustls(error) => write!(f, "TLS cannot be set up: {error}"),
        }
    }
}

fn trusted_by_file(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = certificates(file)?;
    for (i, certificate) in certificates.iter().enumerate() {
        let broken = |error: rustls::Error| TlsError::BrokenCertificate { file: file.into(), number: i + 1, why: error.to_string() };
        RootCertStore::empty().add(certificate.clone()).map_err(broken)?;
    }
    Ok(certificates)
}

/// One broken certificate among the system's is not ours to refuse; none that works is.
fn trusted_by_system() -> Result<Vec<CertificateDer<'static>>, TlsError> {
    // what it names is opened as it is, and a FIFO would be waited for
    if let Some(file) = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from)
        && let Err(error) = files::open(&file)
    {
        return Err(TlsError::NoRoots { why: format!("SSL_CERT_FILE is {}: {}", file.display(), why(&error)) });
    }
    let found = rustls_native_certs::load_native_certs();
    let mut certificates = found.certs;
    certificates.retain(|certificate| RootCertStore::empty().add(certificate.clone()).is_ok());
    if certificates.is_empty() {
        let why = found.errors.first().map_or("none found".into(), |error| error.to_string());
        return Err(TlsError::NoRoots { why });
    }
    Ok(certificates)
}

fn anchors(trusted: Vec<CertificateDer<'static>>) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(trusted);
    roots
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(file)?;
    let certificates = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>().map_err(|error| broken_pem(file, error))?;
    if certificates.is_empty() {
        return Err(TlsError::NoCertificate { file: file.into() });
    }
    Ok(certificates)
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let bytes = read(file)?;
    if is_encrypted(&bytes) {
        return Err(TlsError::EncryptedKey { file: file.into() });
    }
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| match error {
        pem::Error::NoItemsFound => TlsError::NoKey { file: file.into() },
        error => broken_pem(file, error),
    })
}

/// PKCS #8 says so in its label, the older forms in a header.
fn is_encrypted(pem: &[u8]) -> bool {
    pem.split(|&b| b == b'\n').any(|line| {
        let line = line.trim_ascii_end();
        line == b"-----BEGIN ENCRYPTED PRIVATE KEY-----" || (line.starts_with(b"Proc-Type:") && line.ends_with(b"ENCRYPTED"))
    })
}

fn unfit(client: &ClientCertificate, error: rustls::Error) -> TlsError {
    match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            TlsError::WrongKey { cert_file: client.cert_file.clone(), key_file: client.key_file.clone() }
        }
        rustls::Error::InvalidCertificate(error) => {
            TlsError::BrokenCertificate { file: client.cert_file.clone(), number: 1, why: error.to_string() }
        }
        error => TlsError::UnfitKey {
            file: client.key_file.clone(),
            why: match error {
                rustls::Error::General(why) => why,
                error => error.to_string(),
            },
        },
    }
}

fn broken_pem(file: &Path, error: pem::Error) -> TlsError {
    let why = match error {
        pem::Error::MissingSectionEnd { end_marker } => format!("`-----END {}-----` is missing", escape_bytes(&end_marker)),
        pem::Error::IllegalSectionStart { .. } => "a line that begins with -----BEGIN does not end in -----".into(),
        pem::Error::Base64Decode(_) => "a line between BEGIN and END is not base64".into(),
        error => error.to_string(),
    };
    TlsError::BrokenPem { file: file.into(), why }
}

fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    read_bounded(file, FILE_MAX).map_err(|error| TlsError::Unreadable { file: file.into(), why: why(&error) })
}

#[cfg(test)]
mod tests {
    use std::io;

    use rustls::pki_types::ServerName;
    use rustls::server::WebPkiClientVerifier;
    use rustls::{ClientConnection, ServerConfig, ServerConnection};

    use super::*;
    use crate::scratch::Scratch;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name)
    }

    fn with_ca(ca: PathBuf) -> Tls {
        Tls { ca_file: Some(ca), client: None }
    }

    fn with_client(cert: PathBuf, key: PathBuf) -> Tls {
        Tls { ca_file: Some(fixture("ca.pem")), client: Some(ClientCertificate { cert_file: cert, key_file: key }) }
    }

    /// The broker of these tests; with `client_ca` it wants a certificate.
    fn broker(client_ca: bool) -> Arc<ServerConfig> {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
        let builder = if client_ca {
            let roots = Arc::new(anchors(trusted(Some(&fixture("ca.pem"))).unwrap()));
            builder.with_client_cert_verifier(WebPkiClientVerifier::builder_with_provider(roots, provider).build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let chain = certificates(&fixture("server.pem")).unwrap();
        Arc::new(builder.with_single_cert(chain, private_key(&fixture("server.key")).unwrap()).unwrap())
    }

    /// A whole handshake in memory.
    fn handshake(tls: &Tls, name: &'static str, client_ca: bool) -> Result<(), rustls::Error> {
        let mut client = ClientConnection::new(client_config(tls).unwrap(), ServerName::try_from(name).unwrap()).unwrap();
        let mut server = ServerConnection::new(broker(client_ca)).unwrap();
        let mut wire = Vec::new();
        while client.is_handshaking() || server.is_handshaking() {
            wire.clear();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            let mut rest = wire.as_slice();
            while !rest.is_empty() {
                server.read_tls(&mut rest).unwrap();
                server.process_new_packets()?;
            }
            wire.clear();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            let mut rest: &mut dyn io::Read = &mut wire.as_slice();
            while client.read_tls(&mut rest).unwrap() > 0 {
                client.process_new_packets()?;
            }
        }
        Ok(())
    }

    #[test]
    fn the_host_name_is_checked() {
        let tls = with_ca(fixture("ca.pem"));
        assert_eq!(handshake(&tls, "broker.test", false), Ok(()));
        assert_eq!(handshake(&tls, "127.0.0.1", false), Ok(()));
        for name in ["other.test", "127.0.0.2", "localhost"] {
            let error = handshake(&tls, name, false).unwrap_err();
            assert!(error.to_string().contains("not valid for name"), "{name}: {error}");
        }
    }

    #[test]
    fn the_authority_is_checked() {
        let error = handshake(&with_ca(fixture("client.pem")), "broker.test", false).unwrap_err();
        assert!(error.to_string().contains("UnknownIssuer"), "{error}");
    }

    #[test]
    fn several_authorities_in_one_file() {
        let dir = Scratch::new();
        let both = [fixture("client.pem"), fixture("ca.pem")].map(|file| std::fs::read(file).unwrap()).concat();
        assert_eq!(handshake(&with_ca(dir.file("both.pem", both)), "broker.test", false), Ok(()));
    }

    #[test]
    fn client_certificates_with_every_form_of_key() {
        let pairs = [
            ("client.pem", "client.key"),
            ("client.pem", "client-sec1.key"),
            ("client-rsa.pem", "client-rsa.key"),
            ("client-rsa.pem", "client-rsa-pkcs1.key"),
        ];
        for (cert, key) in pairs {
            let tls = with_client(fixture(cert), fixture(key));
            assert_eq!(handshake(&tls, "broker.test", true), Ok(()), "{key}");
        }
        let without = with_ca(fixture("ca.pem"));
        assert!(handshake(&without, "broker.test", true).is_err());
    }

    #[test]
    fn refused() {
        let dir = Scratch::new();
        let ca = std::fs::read_to_string(fixture("ca.pem")).unwrap();
        let empty = dir.file("empty", "");
        let der = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let garbage = dir.file("garbage", format!("{ca}{der}"));
        let cut = dir.file("cut", ca.get(..200).unwrap());
        let not_base64 = dir.file("not64", ca.replace("MII", "M!I"));
        let key = dir.file("key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
        let old =
            "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n-----END EC PRIVATE KEY-----\n";
        let old = dir.file("old", old);
        let none = dir.path().join("none");
        let pem = fixture("client.pem");
        let encrypted = fixture("client-encrypted.key");
        let table = [
            (with_ca(none.clone()), "none: cannot read it: no such file"),
            (with_ca(dir.path().join("")), ": cannot read it: it is a directory"),
            (with_ca(empty.clone()), "empty: there is no certificate in it; a PEM file has `-----BEGIN CERTIFICATE-----`"),
            (with_ca(fixture("client.key")), "tls/client.key: there is no certificate in it; a PEM file has `-----BEGIN CERTIFICATE-----`"),
            (with_ca(garbage), "garbage: certificate 2 in it is broken: invalid peer certificate: BadEncoding"),
            (with_ca(cut), "cut: not a whole PEM file: `-----END CERTIFICATE-----` is missing"),
            (with_ca(not_base64), "not64: not a whole PEM file: a line between BEGIN and END is not base64"),
            (with_client(none.clone(), key.clone()), "none: cannot read it: no such file"),
            (with_client(pem.clone(), none), "none: cannot read it: no such file"),
            (with_client(pem.clone(), empty), "empty: there is no private key in it; a PEM file has `-----BEGIN PRIVATE KEY-----`"),
            (
                with_client(pem.clone(), pem.clone()),
                "tls/client.pem: there is no private key in it; a PEM file has `-----BEGIN PRIVATE KEY-----`",
            ),
            (
                with_client(pem.clone(), key),
                "key: the key cannot be used (failed to parse private key as RSA, ECDSA, or EdDSA); RSA, ECDSA and Ed25519 can",
            ),
            (
                with_client(pem.clone(), fixture("other.key")),
                "tls/other.key: the key does not belong to the certificate in tls/client.pem; name the key it was made with",
            ),
            (
                with_client(pem.clone(), encrypted),
                "tls/client-encrypted.key: the key is encrypted, and nobody is there to type its password; `openssl pkey -in tls/client-encrypted.key -out NEW` writes one without",
            ),
            (
                with_client(pem, old),
                "old: the key is encrypted, and nobody is there to type its password; `openssl pkey -in old -out NEW` writes one without",
            ),
        ];
        let folders = [format!("{}/", dir.path().display()), format!("{}/tests/", env!("CARGO_MANIFEST_DIR"))];
        for (tls, expected) in table {
            let mut error = client_config(&tls).unwrap_err().to_string();
            for folder in &folders {
                error = error.replace(folder, "");
            }
            assert_eq!(error, expected);
        }
    }
}
