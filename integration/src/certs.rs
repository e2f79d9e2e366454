//! Certificates for the TLS scenarios, made when they run: a CA, the broker's, a client's, and a CA nobody trusts.

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

/// PEM texts.
pub struct Certs {
    pub ca: String,
    pub server: String,
    pub server_key: String,
    pub client: String,
    pub client_key: String,
    pub other_ca: String,
}

impl Certs {
    /// The broker's certificate is for `server_name` (a name or an address) only.
    pub fn make(server_name: &str) -> Result<Self> {
        let ca = authority("venus-mqtt test CA")?;
        let other = authority("somebody else's CA")?;
        let server_key = KeyPair::generate()?;
        let server = CertificateParams::new(vec![server_name.to_owned()])?.signed_by(&server_key, &ca)?;
        let client_key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, "venus-mqtt");
        let client = params.signed_by(&client_key, &ca)?;
        Ok(Self {
            ca: ca.pem(),
            server: server.pem(),
            server_key: server_key.serialize_pem(),
            client: client.pem(),
            client_key: client_key.serialize_pem(),
            other_ca: other.pem(),
        })
    }
}

fn authority(name: &str) -> Result<CertifiedIssuer<'static, KeyPair>> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}
