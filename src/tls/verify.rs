//! Verifies the certificate of a server where `ca_file` names what is trusted.
//!
//! A certificate that is byte for byte one of those in `ca_file` is pinned: it is accepted for whatever name and at whatever time, if the
//! server proves that it has the key. Any other has to be signed by one in `ca_file`, to be in date, and to name the host.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{self, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, PeerMisbehaved, SignatureScheme};

use super::{anchors, provider};

/// The certificates of `ca_file`.
#[derive(Debug)]
pub(super) struct Verifier {
    pinned: Vec<CertificateDer<'static>>,
    /// `None` when none of them can be a trust anchor.
    authorities: Option<Arc<WebPkiServerVerifier>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    pub(super) fn new(certificates: Vec<CertificateDer<'static>>) -> Self {
        let provider = provider();
        let algorithms = provider.signature_verification_algorithms;
        let roots = Arc::new(anchors(certificates.clone()));
        let authorities = WebPkiServerVerifier::builder_with_provider(roots, provider).build().ok();
        Self { pinned: certificates, authorities, algorithms }
    }

    /// The key of `certificate`, if that is pinned.
    fn pinned_key<'a>(&self, certificate: &'a CertificateDer<'_>) -> Option<PublicKey<'a>> {
        if self.pinned.contains(certificate) { public_key(certificate) } else { None }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.pinned.contains(end_entity) {
            return Ok(ServerCertVerified::assertion());
        }
        match &self.authorities {
            Some(authorities) => authorities.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now),
            None => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match self.pinned_key(certificate) {
            Some(key) => verify_with(&key, message, signed, &self.algorithms),
            None => crypto::verify_tls12_signature(message, certificate, signed, &self.algorithms),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match self.pinned_key(certificate) {
            Some(key) => {
                let key = SubjectPublicKeyInfoDer::from(key.der);
                crypto::verify_tls13_signature_with_raw_key(message, &key, signed, &self.algorithms)
            }
            None => crypto::verify_tls13_signature(message, certificate, signed, &self.algorithms),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Verifies the signature of a TLS 1.2 handshake. rustls does it for certificates of X.509 version 3 only, a pinned one may be older.
fn verify_with(
    key: &PublicKey<'_>,
    message: &[u8],
    signed: &DigitallySignedStruct,
    supported: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    let found = supported.mapping.iter().find(|(scheme, _)| *scheme == signed.scheme);
    let Some((_, algorithms)) = found else { return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into()) };
    let of_this_key = algorithms.iter().filter(|algorithm| algorithm.public_key_alg_id().as_ref() == key.algorithm);
    for algorithm in of_this_key {
        if algorithm.verify_signature(key.bits, message, signed.signature()).is_ok() {
            return Ok(HandshakeSignatureValid::assertion());
        }
    }
    Err(CertificateError::BadSignature.into())
}

/// The SubjectPublicKeyInfo of a certificate (RFC 5280, section 4.1).
pub(super) struct PublicKey<'a> {
    /// All of it.
    der: &'a [u8],
    /// The content of its AlgorithmIdentifier.
    algorithm: &'a [u8],
    /// The key itself.
    bits: &'a [u8],
}

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;

/// The key of a certificate of any version; `None` if `der` is no certificate.
pub(super) fn public_key(der: &[u8]) -> Option<PublicKey<'_>> {
    let mut rest = der;
    let mut certificate = take(&mut rest, SEQUENCE)?;
    let mut body = take(&mut certificate, SEQUENCE)?;
    take(&mut certificate, SEQUENCE)?;
    take(&mut certificate, BIT_STRING)?;
    if !rest.is_empty() || !certificate.is_empty() {
        return None;
    }
    if body.first() == Some(&VERSION) {
        take(&mut body, VERSION)?;
    }
    take(&mut body, INTEGER)?;
    // the algorithm of the signature, issuer, validity, subject
    for _ in 0..4 {
        take(&mut body, SEQUENCE)?;
    }
    let before = body;
    let mut info = take(&mut body, SEQUENCE)?;
    let der = before.get(..before.len() - body.len())?;
    let algorithm = take(&mut info, SEQUENCE)?;
    // the first byte counts the bits that are missing in the last one
    let bits = take(&mut info, BIT_STRING)?.strip_prefix(&[0])?;
    info.is_empty().then_some(PublicKey { der, algorithm, bits })
}

/// The content of the first element of `input`, if it has this tag.
fn take<'a>(input: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    let (&first, rest) = input.split_first()?;
    let (&length, rest) = rest.split_first()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(length), rest),
        0x81..=0x83 => {
            let (digits, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            (digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    *input = rest;
    (first == tag).then_some(content)
}
