//! The file of the real localsettings: an element for each group and each setting, of which the latter has a `type`.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use quick_xml::{
    Reader, XmlVersion,
    escape::{escape, resolve_predefined_entity},
    events::{BytesStart, Event},
};

use super::{
    settings::{Setting, Settings},
    value::{Kind, Value},
};

pub fn read(text: &str) -> Result<Settings> {
    let mut reader = Reader::from_str(text);
    let mut settings = Settings::default();
    let mut groups: Vec<String> = Vec::new();
    // the setting that is being read, and its text so far
    let mut open: Option<(Attributes, String)> = None;
    loop {
        match reader.read_event()? {
            Event::Start(element) => {
                groups.push(name_of(&element));
                open = Attributes::of(&element)?.map(|attributes| (attributes, String::new()));
            }
            Event::Empty(element) => {
                if let Some(attributes) = Attributes::of(&element)? {
                    let path = format!("/{}/{}", groups.join("/"), name_of(&element));
                    settings.load(path, attributes.setting("")?);
                }
            }
            Event::End(_) => {
                if let Some((attributes, text)) = open.take() {
                    settings.load(format!("/{}", groups.join("/")), attributes.setting(&text)?);
                }
                groups.pop();
            }
            Event::Text(part) => {
                if let Some((_, text)) = &mut open {
                    text.push_str(&part.xml10_content());
                }
            }
            Event::GeneralRef(reference) => {
                let Some((_, text)) = &mut open else { continue };
                match reference.resolve_char_ref()? {
                    Some(letter) => text.push(letter),
                    None => text.push_str(resolve_predefined_entity(&reference.xml10_content()).unwrap_or_default()),
                }
            }
            Event::Eof => return Ok(settings),
            _ => {}
        }
    }
}

pub fn print(settings: &Settings) -> String {
    let mut text = String::from("<?xml version='1.0' encoding='UTF-8'?>\n<Settings version=\"19\" unique-id=\"c0619ab1c2d3\">\n");
    let mut open: Vec<&str> = Vec::new();
    for (path, setting) in settings.below("/Settings") {
        let (groups, name) = path.rsplit_once('/').map_or((Vec::new(), path), |(groups, name)| (groups.split('/').collect(), name));
        let common = open.iter().zip(&groups).take_while(|(a, b)| a == b).count();
        for group in open.drain(common..).rev() {
            let _ = writeln!(text, "</{}>", tag(group));
        }
        for group in &groups[common..] {
            let _ = writeln!(text, "<{}>", tag(group));
            open.push(group);
        }
        let kind = match setting.default.kind() {
            Kind::Int => 'i',
            Kind::Float => 'f',
            Kind::Text => 's',
        };
        let _ = write!(text, "<{} type=\"{kind}\"", tag(name));
        if let Some((min, max)) = setting.limits() {
            let _ = write!(text, " min=\"{}\" max=\"{}\"", min.show(), max.show());
        }
        let (default, silent) = (setting.default.show(), if setting.silent { "True" } else { "False" });
        let value = setting.value.show();
        let _ = writeln!(text, " default=\"{}\" silent=\"{silent}\">{}</{}>", escape(&default), escape(&value), tag(name));
    }
    for group in open.iter().rev() {
        let _ = writeln!(text, "</{}>", tag(group));
    }
    text.push_str("</Settings>\n");
    text
}

/// A tag cannot begin with a digit.
fn tag(name: &str) -> String {
    if name.starts_with(|letter: char| letter.is_ascii_digit()) { format!("_{name}") } else { name.into() }
}

fn name_of(element: &BytesStart<'_>) -> String {
    let name = element.name().as_ref().to_owned();
    name.strip_prefix('_').map_or_else(|| name.clone(), ToOwned::to_owned)
}

/// What stands in the element of a setting.
#[derive(Default)]
struct Attributes {
    kind: String,
    default: Option<String>,
    min: Option<String>,
    max: Option<String>,
    silent: bool,
}

impl Attributes {
    /// `None` for a group.
    fn of(element: &BytesStart<'_>) -> Result<Option<Self>> {
        let mut attributes = Self::default();
        let mut is_setting = false;
        for attribute in element.attributes() {
            let attribute = attribute?;
            let value = attribute.normalized_value(XmlVersion::Implicit1_0)?.into_owned();
            match attribute.key.as_ref() {
                "type" => (attributes.kind, is_setting) = (value, true),
                "default" => attributes.default = Some(value),
                "min" => attributes.min = Some(value),
                "max" => attributes.max = Some(value),
                "silent" => attributes.silent = value == "True" || value == "1",
                _ => {}
            }
        }
        Ok(is_setting.then_some(attributes))
    }

    fn setting(&self, text: &str) -> Result<Setting> {
        let Some(kind) = Kind::of_name(&self.kind) else { bail!("there is no type {:?}", self.kind) };
        let read = |text: &str| kind.bring(&text.into());
        let Some(value) = read(text) else { bail!("{text:?} is not of the type {:?}", self.kind) };
        let limit = |limit: &Option<String>| limit.as_deref().filter(|_| kind != Kind::Text).and_then(read).unwrap_or_else(|| kind.zero());
        let default: Value = self.default.as_deref().and_then(read).unwrap_or_else(|| value.clone());
        Ok(Setting { value, default, min: limit(&self.min), max: limit(&self.max), silent: self.silent })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"<?xml version='1.0' encoding='UTF-8'?>
<Settings version="15" unique-id="c0619ab1c2d3">
  <Devices>
    <mqtt_fe001_t1>
      <ClassAndVrmInstance type="s" default="temperature:1" silent="False">temperature:20</ClassAndVrmInstance>
    </mqtt_fe001_t1>
  </Devices>
  <MqttDevices>
    <mqtt_fe001_t1>
      <CustomName type="s" default="My Temperature Sensor">Tom &amp; J&#233;r&#x6f;me &lt;3</CustomName>
      <Empty type="s" default="x"/>
      <Ac><MaxPower type="i" default="0" silent="False">4600</MaxPower></Ac>
      <Capacity type="f" min="0.0" max="9999.0" default="0.1">0.75</Capacity>
      <_1 type="i" default="0">3</_1>
    </mqtt_fe001_t1>
  </MqttDevices>
</Settings>"#;

    #[test]
    fn a_file_is_read_and_written() {
        let settings = read(FILE).expect("a file of settings");
        for again in [read(&print(&settings)).expect("its own file"), settings] {
            let value = |path: &str| again.get(&format!("/Settings/{path}")).map(|setting| setting.value.clone());
            for (path, wanted) in [
                ("Devices/mqtt_fe001_t1/ClassAndVrmInstance", Value::Text("temperature:20".into())),
                ("MqttDevices/mqtt_fe001_t1/CustomName", Value::Text("Tom & Jérome <3".into())),
                ("MqttDevices/mqtt_fe001_t1/Empty", Value::Text(String::new())),
                ("MqttDevices/mqtt_fe001_t1/Ac/MaxPower", Value::Int(4600)),
                ("MqttDevices/mqtt_fe001_t1/Capacity", Value::Float(0.75)),
                ("MqttDevices/mqtt_fe001_t1/1", Value::Int(3)),
            ] {
                assert_eq!(value(path), Some(wanted), "{path}");
            }
            assert_eq!(again.below("/Settings").count(), 6);
            let capacity = again.get("/Settings/MqttDevices/mqtt_fe001_t1/Capacity").expect("it is there");
            assert_eq!(capacity.limits(), Some((&Value::Float(0.0), &Value::Float(9999.0))));
        }
    }
}
