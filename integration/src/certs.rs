//! Certificates for the TLS scenarios, made when they run: a CA, the broker's, a client's, a CA nobody trusts, and a backend's that
//! is out of date.

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};

/// PEM texts.
pub struct Certs {
    pub ca: String,
    pub server: String,
    pub server_key: String,
    pub client: String,
    pub client_key: String,
    pub other_ca: String,
    /// Like the server's, but out of date.
    pub expired: Identity,
}

/// A certificate and its key, as PEM texts.
#[derive(Clone)]
pub struct Identity {
    pub cert: String,
    pub key: String,
}

impl Certs {
    /// The server's certificate is for `server_name` (a name or an address) only.
    pub fn make(server_name: &str) -> Result<Self> {
        let ca = authority("venus-mqtt test CA")?;
        let other = authority("somebody else's CA")?;
        let server_key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![server_name.to_owned()])?;
        let server = params.signed_by(&server_key, &ca)?;
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        let expired = params.signed_by(&server_key, &ca)?;
        let client_key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, "venus-mqtt");
        let client = params.signed_by(&client_key, &ca)?;
        Ok(Self {
            ca: ca.pem(),
            server: server.pem(),
            expired: Identity { cert: expired.pem(), key: server_key.serialize_pem() },
            server_key: server_key.serialize_pem(),
            client: client.pem(),
            client_key: client_key.serialize_pem(),
            other_ca: other.pem(),
        })
    }

    pub fn server_identity(&self) -> Identity {
        Identity { cert: self.server.clone(), key: self.server_key.clone() }
    }
}

fn authority(name: &str) -> Result<CertifiedIssuer<'static, KeyPair>> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}
