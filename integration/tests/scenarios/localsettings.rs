//! The fake localsettings behaves as the real one does, as far as a program on the bus can tell.

use std::collections::BTreeMap;

use venus_mqtt_integration::{
    Ended, Fake, Part, Rig, Setup,
    fake::{SETTINGS, show_value},
    items::{Entry, Items, owned},
};
use zbus::Variant;

const BUS_ITEM: &str = "com.victronenergy.BusItem";
const INTERFACE: &str = "com.victronenergy.Settings";

fn setting(path: &str, default: impl Into<Variant<'static>>) -> Entry {
    Entry::from([("path".into(), owned(path.to_owned())), ("default".into(), owned(default))])
}

fn limited(path: &str, default: i32, min: i32, max: i32) -> Entry {
    let mut setting = setting(path, default);
    setting.extend([("min".into(), owned(min)), ("max".into(), owned(max))]);
    setting
}

/// What `AddSettings` answers, one line each: `path error value`.
fn add(fake: &Fake, settings: Vec<Entry>) -> Vec<String> {
    let answer: Vec<Entry> = fake.call(SETTINGS, "/", INTERFACE, "AddSettings", &settings).expect("it answers");
    answer
        .iter()
        .map(|entry| {
            let part = |key: &str| entry.get(key).map(show_value).unwrap_or_else(|| "-".into());
            format!("{} {} {}", part("path"), part("error"), part("value"))
        })
        .collect()
}

fn instance(id: &str) -> String {
    format!("/Settings/Devices/{id}/ClassAndVrmInstance")
}

both! {
    /// Added, read, written, removed; and there again after a restart.
    fn settings_are_kept(rig in Setup::devices()) {
        assert_eq!(
            add(rig.fake(), vec![
                setting("/Settings/A/Text", "x"),
                setting("/Settings/A/Float", 2.5),
                limited("/Settings/A/Int", 5, 0, 10),
                setting(&instance("a"), "tank:1"),
                setting(&instance("b"), "tank:1"),
            ]),
            [
                "s \"/Settings/A/Text\" i 0 s \"x\"",
                "s \"/Settings/A/Float\" i 0 d 2.5",
                "s \"/Settings/A/Int\" i 0 i 5",
                "s \"/Settings/Devices/a/ClassAndVrmInstance\" i 0 s \"tank:1\"",
                "s \"/Settings/Devices/b/ClassAndVrmInstance\" i 0 s \"tank:2\"",
            ]
        );
        assert_eq!(rig.fake().set_value(SETTINGS, "/Settings/A/Int", 7.9).ok(), Some(0));
        assert_eq!(rig.fake().set_value(SETTINGS, "/Settings/A/Int", 11).ok(), Some(-1));
        assert_eq!(rig.fake().set_value(SETTINGS, "/Settings/A/Int", "x").ok(), Some(-1));
        let removed: Vec<i32> =
            rig.fake().call(SETTINGS, "/", INTERFACE, "RemoveSettings", &vec!["/Settings/A/Text", "/Settings/A/None"]).expect("it answers");
        assert_eq!(removed, [0, -1]);
        let wanted: BTreeMap<String, String> = [
            ("/Settings/A/Float", "d 2.5"),
            ("/Settings/A/Int", "i 7"),
            ("/Settings/Devices/a/ClassAndVrmInstance", "s \"tank:1\""),
            ("/Settings/Devices/b/ClassAndVrmInstance", "s \"tank:2\""),
        ]
        .map(|(path, value)| (path.to_owned(), value.to_owned()))
        .into();
        assert_eq!(rig.fake().settings(), wanted);
        rig.kill(Part::Settings);
        rig.start_settings();
        assert_eq!(rig.fake().settings(), wanted);
        assert_eq!(rig.stop(Part::Settings), Ended::Code(0));
        rig.start_settings();
        assert_eq!(rig.fake().settings(), wanted);
        // what is stored counts, and not what is wished for
        assert_eq!(add(rig.fake(), vec![setting(&instance("b"), "tank:7")]), [
            "s \"/Settings/Devices/b/ClassAndVrmInstance\" i 0 s \"tank:2\""
        ]);
    }
}

#[test]
fn errors_have_their_numbers() {
    let rig = Rig::new(Setup::devices());
    let fake = rig.fake();
    add(fake, vec![limited("/Settings/A/B", 5, 0, 10)]);
    let answers = add(
        fake,
        vec![
            setting("/Settings/_A/B", 1),
            setting("/Settings/A/List", Vec::<i32>::new()),
            setting("/Settings/A/Bool", true),
            Entry::from([("default".into(), owned(1))]),
            setting("/Settings/A/B", "text"),
            setting(&instance("a"), "tank"),
            limited("/Settings/A/C", 11, 0, 10),
            setting("/Settings/A", 1),
            setting("/Other/A", 1),
            // the good one among them is taken
            setting("/Settings/A/D", 1),
        ],
    );
    let codes: Vec<_> =
        answers.iter().map(|answer| answer.split(" i ").nth(1).unwrap_or_default().split(' ').next().unwrap_or_default()).collect();
    assert_eq!(codes, ["-2", "-3", "-3", "-4", "-5", "-6", "-7", "-8", "-9", "0"], "{answers:?}");
    let old = |name: &str, kind: &str| -> i32 {
        let zero = || owned(0);
        let body = ("Old", name, owned(3), kind, zero(), zero());
        fake.call(SETTINGS, "/Settings", INTERFACE, "AddSetting", &body).expect("it answers")
    };
    assert_eq!(["A", "_A", "B"].map(|name| old(name, "i")), [0, -2, 0]);
    assert_eq!(old("A", "f"), -5);
    assert_eq!(old("C", "x"), -3);
    assert_eq!(fake.shown(SETTINGS, "/Settings/Old/A"), "i 3");
    assert!(fake.shown(SETTINGS, "/Settings/None").contains("UnknownObject"));
}

#[test]
fn a_number_of_a_class_is_given_once() {
    let rig = Rig::new(Setup::devices());
    let fake = rig.fake();
    add(fake, ["a", "b", "c"].map(|id| setting(&instance(id), "tank:1")).into());
    assert_eq!(["a", "b", "c"].map(|id| fake.shown(SETTINGS, &instance(id))), ["s \"tank:1\"", "s \"tank:2\"", "s \"tank:3\""]);
    let watch = rig.watch();
    // taken: the next free one, and accepted all the same
    assert_eq!(fake.set_value(SETTINGS, &instance("a"), "tank:2").ok(), Some(0));
    assert_eq!(fake.shown(SETTINGS, &instance("a")), "s \"tank:4\"");
    assert_eq!(fake.set_value(SETTINGS, &instance("a"), "nonsense").ok(), Some(-1));
    // its own is the next free one
    assert_eq!(fake.set_value(SETTINGS, &instance("a"), "tank:3").ok(), Some(0));
    watch.barrier();
    let owner = fake.owner_of(SETTINGS).expect("it runs");
    assert_eq!(watch.of(&owner), [format!("PropertiesChanged {} Text s \"tank:4\", Value s \"tank:4\"", instance("a"))]);
}

#[test]
fn signals_are_on_the_settings_own_path() {
    let rig = Rig::new(Setup::devices());
    let fake = rig.fake();
    let watch = rig.watch();
    add(fake, vec![limited("/Settings/A", 5, 0, 10), setting("/Settings/B", "x"), setting("/Settings/C", 2.0)]);
    add(fake, vec![limited("/Settings/A", 5, 0, 10)]);
    add(fake, vec![limited("/Settings/A", 5, 0, 20)]);
    assert_eq!(fake.set_value(SETTINGS, "/Settings/A", 15).ok(), Some(0));
    assert_eq!(fake.set_value(SETTINGS, "/Settings/A", 15).ok(), Some(0));
    let _: Vec<i32> = fake.call(SETTINGS, "/", INTERFACE, "RemoveSettings", &vec!["/Settings/A"]).expect("it answers");
    watch.barrier();
    assert_eq!(
        watch.of(&fake.owner_of(SETTINGS).expect("it runs")),
        [
            r#"PropertiesChanged /Settings/A Default i 5, Max i 10, Min i 0, Text s "5", Value i 5"#,
            r#"PropertiesChanged /Settings/B Default s "x", Text s "x", Value s "x""#,
            r#"PropertiesChanged /Settings/C Default d 2.0, Max d 0.0, Min d 0.0, Text s "2.0", Value d 2.0"#,
            r#"PropertiesChanged /Settings/A Default i 5, Max i 20, Min i 0, Text s "5", Value i 5"#,
            r#"PropertiesChanged /Settings/A Text s "15", Value i 15"#,
            r#"PropertiesChanged /Settings/A Text s "---", Value ai []"#,
        ]
    );
}

#[test]
fn everything_can_be_read() {
    let rig = Rig::new(Setup::devices());
    let fake = rig.fake();
    add(fake, vec![limited("/Settings/A/B", 5, 0, 10), setting("/Settings/A/C", "x")]);
    let read = |path: &str, member: &str| -> String {
        let value: zbus::OwnedVariant = fake.call_without_interface(SETTINGS, path, member, &()).expect("it answers");
        show_value(&value)
    };
    assert_eq!(["GetValue", "GetMin", "GetMax", "GetDefault"].map(|member| read("/Settings/A/B", member)), ["i 5", "i 0", "i 10", "i 5"]);
    assert_eq!(read("/Settings/A", "GetValue"), r#"a{sv} {"B":5,"C":"x"}"#);
    assert_eq!(read("/", "GetValue"), r#"a{sv} {"Settings/A/B":5,"Settings/A/C":"x"}"#);
    assert_eq!(read("/Settings", "GetText"), r#"a{ss} {"A/B":"5","A/C":"x"}"#);
    let text: String = fake.call(SETTINGS, "/Settings/A/B", BUS_ITEM, "GetText", &()).expect("it answers");
    assert_eq!(text, "5");
    let silent: bool = fake.call(SETTINGS, "/Settings/A/B", BUS_ITEM, "GetSilent", &()).expect("it answers");
    assert!(!silent);
    let (default, _, max, silent): (zbus::OwnedVariant, zbus::OwnedVariant, zbus::OwnedVariant, i32) =
        fake.call(SETTINGS, "/Settings/A/B", BUS_ITEM, "GetAttributes", &()).expect("it answers");
    assert_eq!((show_value(&default), show_value(&max), silent), ("i 5".into(), "i 10".into(), 0));
    let items: Items = fake.call(SETTINGS, "/", BUS_ITEM, "GetItems", &()).expect("it answers");
    let keys = |path: &str| items[path].keys().map(String::as_str).collect::<Vec<_>>();
    assert_eq!(keys("/Settings/A/B"), ["Default", "Max", "Min", "Text", "Value"]);
    assert_eq!(keys("/Settings/A/C"), ["Default", "Text", "Value"]);
    let xml: String = fake.call(SETTINGS, "/Settings", "org.freedesktop.DBus.Introspectable", "Introspect", &()).expect("it answers");
    assert!(xml.contains("<node name=\"A\"/>"), "{xml}");
    let _: () = fake.call(SETTINGS, "/", "org.freedesktop.DBus.Peer", "Ping", &()).expect("it answers");
}

#[test]
fn held_and_unanswered() {
    let mut rig = Rig::new(Setup::devices());
    let fake = rig.fake();
    fake.settings_behave("AddSettings", "error");
    let refused = fake.call::<Vec<Entry>>(SETTINGS, "/", INTERFACE, "AddSettings", &vec![setting("/Settings/A", 1)]);
    assert!(refused.is_err());
    assert!(fake.settings().is_empty());
    assert_eq!(fake.settings_calls(), ["AddSettings /", "GetItems /"]);
    assert_eq!(fake.settings_release(), 0);
    fake.settings_behave("AddSettings", "die");
    assert!(fake.call::<Vec<Entry>>(SETTINGS, "/", INTERFACE, "AddSettings", &vec![setting("/Settings/A", 1)]).is_err());
    assert_eq!(rig.ended(Part::Settings), Ended::Code(1));
}
