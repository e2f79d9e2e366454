//! The few MQTT 3.1.1 packets the subscriber needs, as bytes.

pub const CONNACK_OK: &[u8] = &[0x20, 2, 0, 0];
pub const SUBACK_OK: &[u8] = &[0x90, 3, 0, 1, 0];

/// Clean session, no keep-alive: a broker that is stopped for a while must not lose this client.
pub fn connect(client: &str) -> Vec<u8> {
    let mut body = vec![0, 4];
    body.extend_from_slice(b"MQTT");
    body.extend_from_slice(&[4, 2, 0, 0]);
    text(&mut body, client);
    packet(0x10, &body)
}

/// QoS 0, packet identifier 1.
pub fn subscribe(filter: &str) -> Vec<u8> {
    let mut body = vec![0, 1];
    text(&mut body, filter);
    body.push(0);
    packet(0x82, &body)
}

/// QoS 0, not retained.
pub fn publish(topic: &str, payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    text(&mut body, topic);
    body.extend_from_slice(payload);
    packet(0x30, &body)
}

/// A whole packet at the start of some bytes.
pub struct Packet<'a> {
    first: u8,
    body: &'a [u8],
    pub length: usize,
}

/// The packet at the start of `bytes`, if all of it is there.
pub fn next(bytes: &[u8]) -> Option<Packet<'_>> {
    let first = *bytes.first()?;
    let mut size = 0;
    for (n, byte) in bytes.iter().skip(1).take(4).enumerate() {
        size |= usize::from(byte & 127) << (7 * n);
        if byte & 128 == 0 {
            let start = n + 2;
            let body = bytes.get(start..start + size)?;
            return Some(Packet { first, body, length: start + size });
        }
    }
    None
}

impl<'a> Packet<'a> {
    /// Topic and payload, if it is a publish.
    pub fn publish(&self) -> Option<(&'a [u8], &'a [u8])> {
        if self.first & 0xF0 != 0x30 {
            return None;
        }
        let (length, rest) = self.body.split_first_chunk::<2>()?;
        let (topic, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        let identifier = if self.first & 6 == 0 { 0 } else { 2 };
        Some((topic, rest.get(identifier..)?))
    }
}

fn text(body: &mut Vec<u8>, text: &str) {
    body.extend_from_slice(&(text.len() as u16).to_be_bytes());
    body.extend_from_slice(text.as_bytes());
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    let mut size = body.len();
    loop {
        let digit = (size & 127) as u8;
        size >>= 7;
        bytes.push(if size > 0 { digit | 128 } else { digit });
        if size == 0 {
            break;
        }
    }
    bytes.extend_from_slice(body);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publish_reads_back_whatever_its_size() {
        for size in [0, 1, 110, 127, 128, 16_383, 16_384, 70_000] {
            let payload = vec![b'x'; size];
            let mut bytes = publish("N/a/b", &payload);
            let whole = bytes.len();
            bytes.extend_from_slice(&[0xD0, 0]);
            let packet = next(&bytes).unwrap();
            assert_eq!(packet.length, whole);
            assert_eq!(packet.publish(), Some((&b"N/a/b"[..], &payload[..])));
            assert!(next(&bytes[..whole - 1]).is_none());
            assert!(next(&bytes[whole..]).unwrap().publish().is_none());
        }
    }

    #[test]
    fn packets_are_what_the_standard_says() {
        assert_eq!(connect("ab"), [0x10, 14, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 0, 0, 2, b'a', b'b']);
        assert_eq!(subscribe("#"), [0x82, 6, 0, 1, 0, 1, b'#', 0]);
        assert_eq!(publish("t", b"p"), [0x30, 4, 0, 1, b't', b'p']);
    }
}
