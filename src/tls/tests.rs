use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConnection, ServerConfig, ServerConnection, SupportedProtocolVersion};

use super::words::{OwnCertificate, Server};
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
        let roots = Arc::new(anchors(trusted_by_file(&fixture("ca.pem")).unwrap()));
        builder.with_client_cert_verifier(WebPkiClientVerifier::builder_with_provider(roots, provider).build().unwrap())
    } else {
        builder.with_no_client_auth()
    };
    let chain = certificates(&fixture("server.pem")).unwrap();
    Arc::new(builder.with_single_cert(chain, private_key(&fixture("server.key")).unwrap()).unwrap())
}

/// A whole handshake in memory.
fn handshake(tls: &Tls, name: &str, client_ca: bool) -> Result<(), rustls::Error> {
    meet(tls, name, broker(client_ca))
}

/// The client's error, if it has one.
fn meet(tls: &Tls, name: &str, server: Arc<ServerConfig>) -> Result<(), rustls::Error> {
    let mut client = ClientConnection::new(client_config(tls).unwrap(), server_name(name).unwrap()).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    let mut wire = Vec::new();
    while client.is_handshaking() || server.is_handshaking() {
        wire.clear();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut refused = Ok(());
        let mut rest = wire.as_slice();
        while !rest.is_empty() && refused.is_ok() {
            server.read_tls(&mut rest).unwrap();
            refused = server.process_new_packets().map(drop);
        }
        wire.clear();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut rest: &mut dyn io::Read = &mut wire.as_slice();
        while client.read_tls(&mut rest).unwrap() > 0 {
            client.process_new_packets()?;
        }
        refused?;
    }
    Ok(())
}

/// Shows a certificate, whether it fits its key or not.
#[derive(Debug)]
struct Shows(Arc<CertifiedKey>);

impl ResolvesServerCert for Shows {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

fn showing(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    version: &'static SupportedProtocolVersion,
) -> Arc<ServerConfig> {
    let key = provider().key_provider.load_private_key(key).unwrap();
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[version]).unwrap();
    Arc::new(builder.with_no_client_auth().with_cert_resolver(Arc::new(Shows(Arc::new(CertifiedKey::new(chain, key))))))
}

fn fixture_chain(name: &str) -> Vec<CertificateDer<'static>> {
    certificates(&fixture(name)).unwrap()
}

fn fixture_key(name: &str) -> PrivateKeyDer<'static> {
    private_key(&fixture(name)).unwrap()
}

const VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];

fn said(error: &rustls::Error, ca_file: Option<&Path>, own: OwnCertificate) -> String {
    let text = Server { role: "broker", host: "broker.test", ca_file, own, port_hint: "its port for TLS" }.explain(error);
    assert_is_prose(&text);
    text
}

/// None of the library's names, nor how Rust prints them.
fn assert_is_prose(text: &str) {
    let letters: Vec<char> = text.chars().collect();
    let is_debug = letters.windows(2).any(|pair| pair[1] == '(' && pair[0].is_alphanumeric());
    let camel = text.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| {
        let word = word.as_bytes();
        word.windows(3).any(|three| three[0].is_ascii_uppercase() && three[1].is_ascii_lowercase() && three[2].is_ascii_uppercase())
            || word.first().is_some_and(u8::is_ascii_uppercase)
                && word.iter().skip(2).any(u8::is_ascii_uppercase)
                && word.iter().any(u8::is_ascii_lowercase)
    });
    assert!(!is_debug && !camel && !text.contains("::") && !text.contains('{'), "{text}");
}

/// Each at both versions of TLS, under a name that it does not have: what a GX makes, one out of date, one of X.509 version 1.
#[test]
fn a_pinned_certificate_is_accepted_as_it_is() {
    let dir = Scratch::new();
    let expired = made(|params| params.not_after = rcgen::date_time_ymd(2021, 1, 1));
    let expired_pem = dir.file("expired.pem", &expired.0);
    let all =
        dir.file("all.pem", [fixture("ca.pem"), fixture("v1.pem"), fixture("gx.pem")].map(|file| std::fs::read(file).unwrap()).concat());
    for version in VERSIONS {
        for name in ["192.168.1.20", "fe80::1%eth0", "venus.local"] {
            for pin in [fixture("gx.pem"), all.clone()] {
                let server = showing(fixture_chain("gx.pem"), fixture_key("gx.key"), version);
                assert_eq!(meet(&with_ca(pin), name, server), Ok(()));
            }
            for pin in [fixture("v1.pem"), all.clone()] {
                let server = showing(fixture_chain("v1.pem"), fixture_key("v1.key"), version);
                assert_eq!(meet(&with_ca(pin), name, server), Ok(()));
            }
            let server = showing(certificates(&expired_pem).unwrap(), private_key_of(&expired.1), version);
            assert_eq!(meet(&with_ca(expired_pem.clone()), name, server), Ok(()));
        }
        // the others in the file are authorities as before
        let server = showing(fixture_chain("server.pem"), fixture_key("server.key"), version);
        assert_eq!(meet(&with_ca(all.clone()), "broker.test", server.clone()), Ok(()));
        assert!(meet(&with_ca(all.clone()), "other.test", server).is_err());
    }
}

/// Whoever shows a pinned certificate has to have its key.
#[test]
fn a_pinned_certificate_needs_its_key() {
    for version in VERSIONS {
        for (pin, key) in [("gx.pem", "client-rsa.key"), ("v1.pem", "server.key"), ("gx.pem", "server.key")] {
            let server = showing(fixture_chain(pin), fixture_key(key), version);
            let error = meet(&with_ca(fixture(pin)), "venus.local", server).unwrap_err();
            let text = said(&error, Some(&fixture(pin)), OwnCertificate::NotConfigured);
            assert!(text.contains("does not have the key") || text.contains("that is not supported"), "{text}");
        }
    }
}

#[test]
fn a_pinned_certificate_that_was_replaced() {
    let dir = Scratch::new();
    let (other, key) = made(|params| params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained));
    let other = dir.file("other.pem", other);
    for version in VERSIONS {
        for (chain, key) in [
            (certificates(&other).unwrap(), private_key_of(&key)),
            (fixture_chain("v1.pem"), fixture_key("v1.key")),
            (fixture_chain("server.pem"), fixture_key("server.key")),
        ] {
            for pin in ["gx.pem", "v1.pem"] {
                if chain != fixture_chain(pin) {
                    let error = meet(&with_ca(fixture(pin)), "broker.test", showing(chain.clone(), key.clone_key(), version)).unwrap_err();
                    let text = said(&error, Some(Path::new("/etc/gx.pem")), OwnCertificate::NotConfigured);
                    assert!(text.contains("the broker's certificate is not the one in /etc/gx.pem"), "{text}");
                    assert!(text.contains("if it was replaced, put the new one there"), "{text}");
                }
            }
        }
    }
}

/// A certificate for broker.test that signs itself, and its key, as PEM.
fn made(change: impl FnOnce(&mut rcgen::CertificateParams)) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(["broker.test".to_owned()]).unwrap();
    change(&mut params);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// The same, signed by an authority, whose certificate comes last.
fn signed(
    authority: impl FnOnce(&mut rcgen::CertificateParams),
    change: impl FnOnce(&mut rcgen::CertificateParams),
) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>, String) {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    authority(&mut params);
    let authority = rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(["broker.test".to_owned()]).unwrap();
    change(&mut params);
    let certificate = params.signed_by(&key, &authority).unwrap();
    (vec![certificate.der().clone()], private_key_of(&key.serialize_pem()), authority.pem())
}

fn private_key_of(pem: &str) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap()
}

#[test]
fn certificates_that_are_refused_are_explained() {
    let dir = Scratch::new();
    let file = Some(Path::new("/etc/ca.pem"));
    let as_it_is = |_: &mut rcgen::CertificateParams| {};
    let year = rcgen::date_time_ymd;
    let cases = [
        (
            signed(as_it_is, |params| params.not_after = year(2021, 1, 1)),
            "the certificate expired on 2021-01-01, or the clock is wrong: here it is 20",
        ),
        (
            signed(as_it_is, |params| params.not_before = year(2120, 1, 1)),
            "the certificate is not valid before 2120-01-01, or the clock is wrong: here it is 20",
        ),
        (
            signed(as_it_is, |params| (params.not_before, params.not_after) = (year(2120, 1, 1), year(2020, 1, 1))),
            "the certificate has expired, or the clock is wrong",
        ),
        (
            signed(as_it_is, |params| {
                params.subject_alt_names =
                    vec![rcgen::SanType::DnsName("a.test".try_into().unwrap()), rcgen::SanType::IpAddress([1, 2, 3, 4].into())]
            }),
            "the certificate is not for broker.test, but for a.test, 1.2.3.4; to accept this very certificate under any name, put it into `ca_file`",
        ),
        (
            signed(as_it_is, |params| params.subject_alt_names.clear()),
            "the certificate is not for broker.test, and names no host: subjectAltName has no DNS name and no IP address; to accept this very certificate under any name, put it into `ca_file`",
        ),
        (
            signed(as_it_is, |params| params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained)),
            "the certificate is not trusted: the broker's certificate is not the one in /etc/ca.pem, and one of a CA, which is accepted only if it is that one; if it was replaced, put the new one there",
        ),
        (
            signed(as_it_is, |params| params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth]),
            "the certificate is not for servers: its extended key usage lacks serverAuth",
        ),
        (
            signed(
                |params| {
                    let permitted_subtrees = vec![rcgen::GeneralSubtree::DnsName("else.test".into())];
                    params.name_constraints = Some(rcgen::NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
                },
                as_it_is,
            ),
            "the certificate cannot be used: name constraint violation",
        ),
        (
            signed(as_it_is, |params| {
                let mut extension = rcgen::CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
                extension.set_criticality(true);
                params.custom_extensions = vec![extension];
            }),
            "the certificate cannot be used: unsupported critical extension",
        ),
    ];
    for ((chain, key, ca), expected) in cases {
        let ca = dir.file("ca.pem", ca);
        for version in VERSIONS {
            let error = meet(&with_ca(ca.clone()), "broker.test", showing(chain.clone(), key.clone_key(), version)).unwrap_err();
            let text = said(&error, file, OwnCertificate::NotConfigured);
            assert!(text.starts_with(expected), "{text}");
            assert!(text == expected || text.len() == expected.len() + "26-11-29".len(), "{text}");
        }
    }
    let (chain, key) = (fixture_chain("server.pem"), fixture_key("server.key"));
    let trusting = with_ca(fixture("ca.pem"));
    for version in VERSIONS {
        let tell = |chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>, ca_file| {
            said(&meet(&trusting, "broker.test", showing(chain, key, version)).unwrap_err(), ca_file, OwnCertificate::NotConfigured)
        };
        // the certificate of somebody else
        assert!(tell(chain.clone(), fixture_key("v1.key"), file).starts_with("a signature is wrong: the broker does not have the key"));
        assert_eq!(tell(vec![vec![1, 2, 3].into()], key.clone_key(), file), "the certificate is malformed");
        let (unknown, unknown_key, _) = signed(as_it_is, as_it_is);
        assert_eq!(
            tell(unknown.clone(), unknown_key.clone_key(), file),
            "the certificate is not trusted: the broker's certificate is not the one in /etc/ca.pem, nor signed by it; if it was replaced, put the new one there"
        );
        // the system's certificates would say the same
        assert_eq!(
            tell(unknown, unknown_key, None),
            "the certificate is not trusted: its issuer is unknown; name the CA's certificate, or the broker's own, with `ca_file`"
        );
        assert_eq!(
            tell(fixture_chain("gx.pem"), fixture_key("gx.key"), None),
            "the certificate is not trusted: it is one of a CA, which is accepted only if it is in `ca_file`: put the broker's certificate there"
        );
        assert_eq!(
            tell(fixture_chain("v1.pem"), fixture_key("v1.key"), None),
            "the certificate is not trusted: it is one of X.509 version 1, which is accepted only if it is in `ca_file`: put the broker's certificate there"
        );
    }
}

/// Alternative names that look like the host and are of another kind.
#[test]
fn names_of_other_kinds() {
    use rcgen::SanType;
    let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
    let others = || {
        let mail = SanType::Rfc822Name("a@b.test".try_into().unwrap());
        let uri = SanType::URI("https://broker.test/".try_into().unwrap());
        vec![mail, uri, SanType::OtherName((vec![1, 3, 6, 1], rcgen::OtherNameValue::Utf8String("broker.test".into())))]
    };
    for (host, names, expected) in [
        (
            "127.0.0.1",
            vec![dns("127.0.0.1")],
            "127.0.0.1, which stands there as a DNS name: an address needs an IP entry (subjectAltName=IP:127.0.0.1)",
        ),
        (
            "[::1]",
            vec![dns("a.test"), dns("0::1")],
            "[::1], which stands there as a DNS name: an address needs an IP entry (subjectAltName=IP:::1)",
        ),
        ("127.0.0.1", vec![dns("127.0.0.2"), SanType::IpAddress([127, 0, 0, 3].into())], "127.0.0.1, but for 127.0.0.2, 127.0.0.3"),
        ("broker.test", [others(), vec![dns("a.test")], others()].concat(), "broker.test, but for a.test"),
        ("broker.test", others(), "broker.test, and names no host: subjectAltName has no DNS name and no IP address"),
    ] {
        let dir = Scratch::new();
        let (chain, key, ca) = signed(|_| {}, |params| params.subject_alt_names = names);
        let error = meet(&with_ca(dir.file("ca.pem", ca)), host, showing(chain, key, VERSIONS[1])).unwrap_err();
        let text = Server { role: "broker", host, ca_file: None, own: OwnCertificate::NotConfigured, port_hint: "" }.explain(&error);
        let rest = "; to accept this very certificate under any name, put it into `ca_file`";
        assert_eq!(text, format!("the certificate is not for {expected}{rest}"));
    }
}

/// What the client makes of these bytes in answer to its hello.
fn answered(bytes: &[u8]) -> rustls::Error {
    let mut client =
        ClientConnection::new(client_config(&with_ca(fixture("ca.pem"))).unwrap(), server_name("broker.test").unwrap()).unwrap();
    client.write_tls(&mut Vec::new()).unwrap();
    client.read_tls(&mut &*bytes).unwrap();
    client.process_new_packets().unwrap_err()
}

#[test]
fn every_alert_is_explained() {
    for number in 0..=u8::MAX {
        // a fatal alert, in a record of TLS 1.2
        let error = answered(&[0x15, 3, 3, 0, 2, 2, number]);
        for own in [OwnCertificate::Shown, OwnCertificate::NotConfigured, OwnCertificate::Unsupported] {
            let text = said(&error, None, own);
            assert!(text.contains("the broker"), "{text}");
        }
    }
    for (number, own, expected) in [
        (116, OwnCertificate::NotConfigured, "the broker wants a client certificate: name one with `cert_file` and `key_file`"),
        (116, OwnCertificate::Unsupported, "the broker wants a client certificate, and an API key is all that there can be"),
        (
            40,
            OwnCertificate::NotConfigured,
            "the broker refused the TLS handshake: it wants a client certificate (`cert_file`, `key_file`), knows no cipher of ours, or has a certificate of a kind that is not supported (RSA, ECDSA P-256, P-384, Ed25519 are)",
        ),
        (
            40,
            OwnCertificate::Unsupported,
            "the broker refused the TLS handshake: it wants a client certificate, knows no cipher of ours, or has a certificate of a kind that is not supported (RSA, ECDSA P-256, P-384, Ed25519 are)",
        ),
        (
            40,
            OwnCertificate::Shown,
            "the broker refused the TLS handshake: it knows no cipher of ours, or has a certificate of a kind that is not supported (RSA, ECDSA P-256, P-384, Ed25519 are)",
        ),
        (
            48,
            OwnCertificate::Shown,
            "the broker refuses the client certificate in `cert_file`: its CA must be one that the server trusts; TLS alert: unknown ca",
        ),
        (42, OwnCertificate::Shown, "the broker refuses the client certificate in `cert_file`; TLS alert: bad certificate"),
        (42, OwnCertificate::NotConfigured, "the broker refused TLS; TLS alert: bad certificate"),
        (70, OwnCertificate::Shown, "the broker refuses TLS 1.2 and 1.3: it speaks older or other versions only"),
        (112, OwnCertificate::Shown, "the broker does not know the name broker.test: it has no certificate for it"),
        (255, OwnCertificate::Shown, "the broker refused TLS; TLS alert: number 255"),
    ] {
        assert_eq!(said(&answered(&[0x15, 3, 3, 0, 2, 2, number]), None, own), expected);
    }
}

/// Whoever refuses a client certificate says so with an alert.
#[test]
fn a_client_certificate_that_is_refused() {
    let without = handshake(&with_ca(fixture("ca.pem")), "broker.test", true).unwrap_err();
    assert_eq!(
        said(&without, None, OwnCertificate::NotConfigured),
        "the broker wants a client certificate: name one with `cert_file` and `key_file`"
    );
    let dir = Scratch::new();
    let (certificate, key) = made(|_| {});
    let foreign = with_client(dir.file("foreign.pem", certificate), dir.file("foreign.key", key));
    let error = handshake(&foreign, "broker.test", true).unwrap_err();
    assert!(said(&error, None, OwnCertificate::Shown).starts_with("the broker refuses the client certificate in `cert_file`"));
}

#[test]
fn what_is_no_tls_is_explained() {
    // a ServerHello with this version, a random number, no session, a cipher suite, no compression
    let hello = |version: [u8; 2], cipher: [u8; 2]| {
        let body = [&version[..], &[7; 32], &[0], &cipher, &[0]].concat();
        let message = [&[2, 0, 0, body.len() as u8][..], &body].concat();
        [&[0x16, 3, 1, 0, message.len() as u8][..], &message].concat()
    };
    for (bytes, expected) in [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), "what answers does not speak TLS: is it its port for TLS?"),
        // a CONNACK, and what Mosquitto sends to whom it does not understand
        (vec![0x20, 2, 0, 0, 0, 0], "what answers does not speak TLS: is it its port for TLS?"),
        (hello([3, 1], [0, 0x2f]), "no common version or cipher of TLS with the broker: "),
        (hello([3, 3], [0, 0x2f]), "the broker breaks the rules of TLS: "),
        (vec![0x17, 3, 3, 0, 1, 0], "the broker breaks the rules of TLS: an unexpected message"),
    ] {
        let text = said(&answered(&bytes), None, OwnCertificate::NotConfigured);
        assert!(text.starts_with(expected), "{text}");
    }
    let server = Server { role: "broker", host: "b", ca_file: None, own: OwnCertificate::NotConfigured, port_hint: "its port for TLS" };
    for kind in [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset] {
        let text = server.explain_handshake(&kind.into());
        assert_eq!(text, "the broker closed the connection during the TLS handshake: is it its port for TLS?");
    }
    for error in [
        rustls::Error::HandshakeNotComplete,
        rustls::Error::EncryptError,
        rustls::Error::FailedToGetRandomBytes,
        rustls::Error::NoCertificatesPresented,
        rustls::Error::General("why".into()),
        rustls::Error::Other(rustls::OtherError(Arc::new(io::Error::other("x")))),
        rustls::CertificateError::Revoked.into(),
        rustls::CertificateError::UnknownRevocationStatus.into(),
        rustls::CertificateError::ApplicationVerificationFailure.into(),
    ] {
        said(&error, None, OwnCertificate::NotConfigured);
    }
}

#[test]
fn garbage_is_no_certificate() {
    let good = fixture_chain("gx.pem").remove(0);
    assert!(public_key(&good).is_some());
    for end in 0..good.len() {
        assert!(public_key(&good[..end]).is_none());
    }
    assert!(public_key(&[&good[..], &[0]].concat()).is_none());
    // whatever is changed, it is read without a panic
    for at in 0..good.len() {
        for bits in [1, 0x80, 0xff] {
            let mut changed = good.to_vec();
            changed[at] ^= bits;
            let _ = public_key(&changed);
        }
    }
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

/// Some editors put one in front of a text, and files with one are put behind another.
#[test]
fn a_byte_order_mark_is_skipped() {
    let dir = Scratch::new();
    let marked = |name: &str, files: &[&str]| {
        let marked = files.iter().flat_map(|file| [b"\xef\xbb\xbf".to_vec(), std::fs::read(fixture(file)).unwrap()]);
        dir.file(name, marked.collect::<Vec<_>>().concat())
    };
    let ca = marked("ca", &["client.pem", "ca.pem"]);
    let (cert, key) = (marked("cert", &["client.pem"]), marked("key", &["client.key"]));
    let tls = Tls { ca_file: Some(ca), client: Some(ClientCertificate { cert_file: cert.clone(), key_file: key }) };
    assert_eq!(handshake(&tls, "broker.test", true), Ok(()));
    let encrypted = marked("encrypted", &["client-encrypted.key"]);
    let error = client_config(&with_client(cert, encrypted)).unwrap_err().to_string();
    assert!(error.contains("the key is encrypted"), "{error}");
}

/// What `cat` makes of files whose last lines do not end: the next section begins in the line in which one ends.
#[test]
fn sections_without_a_line_end_between_them() {
    let dir = Scratch::new();
    let read = |file: &str| std::fs::read_to_string(fixture(file)).unwrap();
    for between in ["", "\u{feff}", " ", "\t\u{feff}"] {
        for ending in ["\n", "\r\n", "\r"] {
            let joined = |name: &str, files: &[&str]| {
                let files: Vec<_> = files.iter().map(|file| read(file).trim_end().replace('\n', ending)).collect();
                dir.file(name, files.join(between))
            };
            let ca = joined("ca", &["client-rsa.pem", "gx.pem", "ca.pem"]);
            assert_eq!(certificates(&ca).unwrap(), ["client-rsa.pem", "gx.pem", "ca.pem"].map(|file| fixture_chain(file).remove(0)));
            // the certificate and its key in one file, in either order
            for files in [["client.pem", "client.key"], ["client.key", "client.pem"]] {
                let both = joined("both", &files);
                let tls =
                    Tls { ca_file: Some(ca.clone()), client: Some(ClientCertificate { cert_file: both.clone(), key_file: both.clone() }) };
                assert_eq!(handshake(&tls, "broker.test", true), Ok(()), "{files:?} {between:?} {ending:?}");
            }
            let encrypted = joined("encrypted", &["client.pem", "client-encrypted.key"]);
            let error = client_config(&with_client(fixture("client.pem"), encrypted)).unwrap_err().to_string();
            assert!(error.contains("the key is encrypted"), "{error}");
        }
    }
    // broken is broken, wherever it stands
    let broken = dir.file("broken", format!("{}-----BEGIN CERTIFICATE-----\nAAAA\n", read("ca.pem").trim_end()));
    let error = certificates(&broken).unwrap_err().to_string();
    assert!(error.ends_with("`-----END CERTIFICATE-----` is missing"), "{error}");
    // what is no section is a comment, as in a line of its own
    let commented = dir.file("commented", format!("{} the end\n{}", read("ca.pem").trim_end(), read("gx.pem")));
    assert_eq!(certificates(&commented).unwrap().len(), 2);
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
    let old = "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n-----END EC PRIVATE KEY-----\n";
    let old = dir.file("old", old);
    let none = dir.path().join("none");
    let pem = fixture("client.pem");
    let encrypted = fixture("client-encrypted.key");
    let table = [
        (with_ca(none.clone()), "none: cannot read it: no such file"),
        (with_ca(dir.path().join("")), ": cannot read it: it is a directory"),
        (with_ca(empty.clone()), "empty: there is no certificate in it; a PEM file has `-----BEGIN CERTIFICATE-----`"),
        (with_ca(fixture("client.key")), "tls/client.key: there is no certificate in it; a PEM file has `-----BEGIN CERTIFICATE-----`"),
        (with_ca(garbage), "garbage: certificate 2 in it is broken: it is no X.509 certificate"),
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
