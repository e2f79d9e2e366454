//! TLS material: certificate and key files to what rustls works with.
//!
//! Promises: ring is the only cryptography; the peer's certificate is always checked, there is no switch against it: it is one of those in
//! `ca_file`, or signed by one that is trusted and made for the host's name. Refuses, naming the file and why: files that hold nothing usable, broken certificates, keys that are
//! encrypted or belong to another certificate. Called by `cli` (so that a mistake is known before anything starts), by
//! the link to the broker and by the clients of HTTP backends.

mod verify;
pub mod words;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, io};

use rustls::client::ClientConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{InconsistentKeys, RootCertStore};

use verify::{Verifier, public_key};
use words::{reason, words};

use crate::config::{ClientCertificate, Tls};
use crate::files::{self, read_bounded, why};
use crate::text::{escape, escape_bytes};

/// Largest certificate or key file taken, in bytes: the bundle of all public authorities has a quarter of it.
const FILE_MAX: u64 = 1 << 20;
/// In UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// What stands around the names of PEM's sections.
const DASHES: &[u8] = b"-----";

/// Makes ring the process's provider, for whoever does not name one; call it before anything speaks TLS.
pub fn install_provider() {
    // it fails only if there is one already
    let _ = ring::default_provider().install_default();
}

/// What the link speaks TLS with.
pub fn client_config(tls: &Tls) -> Result<Arc<ClientConfig>, TlsError> {
    let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().map_err(TlsError::Rustls)?;
    let config = match &tls.ca_file {
        Some(file) => {
            let verifier = Verifier::new(trusted_by_file(file)?);
            config.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        }
        None => config.with_root_certificates(anchors(trusted_by_system()?)),
    };
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

/// The name that the certificate of `host` is to have. An IPv6 address may have brackets, and a zone, which no certificate has.
pub fn server_name(host: &str) -> io::Result<ServerName<'static>> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    let bare = if bare.contains(':') { bare.split('%').next().unwrap_or(bare) } else { bare };
    let none = |_| io::Error::other(format!("{} cannot be the name in a certificate: write a DNS name or an IP address", escape(host)));
    ServerName::try_from(bare.to_owned()).map_err(none)
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
            Self::Rustls(error) => write!(f, "TLS cannot be set up: {}", words(error)),
        }
    }
}

fn trusted_by_file(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = certificates(file)?;
    // one that cannot sign others may still be the server's own
    match certificates.iter().position(|certificate| public_key(certificate).is_none()) {
        Some(index) => Err(TlsError::BrokenCertificate { file: file.into(), number: index + 1, why: "it is no X.509 certificate".into() }),
        None => Ok(certificates),
    }
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
    pem.split(|&byte| is_line_end(byte)).any(|line| {
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
            TlsError::BrokenCertificate { file: client.cert_file.clone(), number: 1, why: reason(&error) }
        }
        error => TlsError::UnfitKey {
            file: client.key_file.clone(),
            why: match error {
                rustls::Error::General(why) => why,
                error => words(&error),
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

/// A PEM file, of which several may have been put together: without the byte order marks that some editors put in front, and with a line
/// end behind each section, which the last line of a file may lack.
fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    let bytes = read_bounded(file, FILE_MAX).map_err(|error| TlsError::Unreadable { file: file.into(), why: why(&error) })?;
    let mut pem = Vec::with_capacity(bytes.len());
    for mut line in bytes.split_inclusive(|&byte| is_line_end(byte)) {
        loop {
            line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line);
            let Some((end, rest)) = split_behind_end(line) else { break };
            pem.extend_from_slice(end);
            pem.push(b'\n');
            line = rest;
        }
        pem.extend_from_slice(line);
    }
    Ok(pem)
}

/// The end of a section, and what else is in its line: rustls would pass over it.
fn split_behind_end(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let label = line.strip_prefix(b"-----END ")?;
    let length = label.windows(DASHES.len()).position(|bytes| bytes == DASHES)?;
    let (end, rest) = line.split_at_checked(line.len() - label.len() + length + DASHES.len())?;
    let rest = rest.trim_ascii_start();
    (!rest.is_empty()).then_some((end, rest))
}

fn is_line_end(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

#[cfg(test)]
mod tests;
