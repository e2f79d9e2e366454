//! The `[[http]]` parts: every refusal with its exact words, and that what is shown can be fed back and holds no secret.

use std::time::Duration;

use super::*;
use crate::config::url::Url;
use crate::measure::options::{Format, Options as HttpOptions};

fn targets(text: &str) -> Vec<HttpTarget> {
    load(&Scratch::new(), text).unwrap().config.http
}

#[test]
fn defaults() {
    let expected = HttpTarget {
        options: HttpOptions {
            name: "1".into(),
            host: "https://backend.example".into(),
            format: Format::VictronMeasurements,
            update_interval: Duration::from_secs(30),
            cerbo_serial: None,
            catch_up_rate: 5.0,
            queue_records: 21_000,
            queue_bytes: 33_554_432,
        },
        url: "https://backend.example/api/victron/measurements".into(),
        api_key: None,
        api_key_header: "X-API-Key".into(),
        connect_timeout: Duration::from_secs(5),
        timeout: Duration::from_secs(10),
        ca_file: None,
        gzip: false,
    };
    for head in ["[http]\n", "[[http]]\n", "http."] {
        assert_eq!(targets(&format!("{head}url = \"https://backend.example\"")), std::slice::from_ref(&expected), "{head}");
    }
    assert_eq!(targets("http = []"), []);
}

const FULL: &str = r##"
[[http]]
name = "home-1_B"
url = "https://backend.example:8443/solar/"
format = "victron-measurements"
api_key_file = "api-key"
timeout = 300
connect_timeout = 0.1
update_interval = 0.05
cerbo_serial = "boat \"1\""
ca_file = "{dir}/ca.pem"
gzip = true
catch_up_rate = 1000
queue_records = 1_000_000
queue_bytes = 65536
[[http]]
url = "http://[::1]:8086/write"
format = "json-lines"
filters = ["battery/+/Soc", "system/#"]
api_key_file = "bearer"
api_key_header = "Authorization"
timeout = 0.25
catch_up_rate = 0.5
"##;

fn full() -> (Scratch, Loaded) {
    let dir = Scratch::new();
    dir.file("api-key", "hunter2\r\nsecond line\n");
    dir.file("bearer", "Bearer hunter2 \n");
    dir.file("ca.pem", "");
    let loaded = load(&dir, FULL).unwrap();
    (dir, loaded)
}

#[test]
fn every_option() {
    let (dir, Loaded { config, warnings, .. }) = full();
    assert_eq!(warnings, []);
    let [first, second] = &config.http[..] else { panic!("{:?}", config.http) };
    let key = |target: &HttpTarget| target.api_key.as_ref().unwrap().reveal().to_owned();
    assert_eq!(
        first.options,
        HttpOptions {
            name: "home-1_B".into(),
            host: "https://backend.example:8443".into(),
            format: Format::VictronMeasurements,
            update_interval: Duration::from_millis(50),
            cerbo_serial: Some("boat \"1\"".into()),
            catch_up_rate: 1000.0,
            queue_records: 1_000_000,
            queue_bytes: 65_536,
        }
    );
    assert_eq!(first.url, "https://backend.example:8443/solar/api/victron/measurements");
    assert_eq!((key(first), first.api_key_header.as_str()), ("hunter2".into(), "X-API-Key"));
    assert_eq!((first.timeout, first.connect_timeout), (Duration::from_secs(300), Duration::from_millis(100)));
    assert_eq!((&first.ca_file, first.gzip), (&Some(dir.path().join("ca.pem")), true));

    assert_eq!((&*second.options.name, &*second.options.host), ("2", "http://[::1]:8086"));
    let filters = ["battery/+/Soc", "system/#"].map(|text| Filter::parse(text).unwrap());
    assert_eq!(second.options.format, Format::JsonLines(filters.into()));
    assert_eq!(second.url, "http://[::1]:8086/write");
    assert_eq!((key(second), second.api_key_header.as_str()), ("Bearer hunter2".into(), "Authorization"));
    // never longer than the whole
    assert_eq!((second.timeout, second.connect_timeout), (Duration::from_millis(250), Duration::from_millis(250)));
}

#[test]
fn where_to_post() {
    let api = "/api/victron/measurements";
    for (url, expected) in [
        ("https://a.example", format!("https://a.example{api}")),
        ("https://a.example/", format!("https://a.example{api}")),
        ("https://a.example/b/c/", format!("https://a.example/b/c{api}")),
        ("https://a.example/api/victron/measurements", format!("https://a.example{api}")),
        ("https://a.example/b/api/victron/measurements/", format!("https://a.example/b{api}")),
        ("HTTP://192.168.1.2:80", format!("http://192.168.1.2:80{api}")),
    ] {
        let [target] = &targets(&format!("[http]\nurl = \"{url}\""))[..] else { panic!("{url}") };
        assert_eq!(target.url, expected, "{url}");
    }
    for (url, expected, host) in [
        ("https://a.example", "https://a.example/", "https://a.example"),
        ("https://a.example/b/", "https://a.example/b/", "https://a.example"),
        ("https://a.example:444/b?c=d&e=%20", "https://a.example:444/b?c=d&e=%20", "https://a.example:444"),
        ("https://a.example?to=http://b", "https://a.example/?to=http://b", "https://a.example"),
    ] {
        let [target] = &targets(&format!("[http]\nurl = \"{url}\"\nformat = \"json-lines\"\nfilters = [\"#\"]"))[..] else {
            panic!("{url}")
        };
        assert_eq!((target.url.as_str(), &*target.options.host), (expected, host), "{url}");
    }
}

#[test]
fn what_is_shown_can_be_fed_back() {
    let (dir, first) = full();
    let second = load(&dir, &first.show()).unwrap();
    assert_eq!(second.config, first.config);
    for text in ["[http]\nurl = \"https://a.example\"", "[http]\nurl = \"http://a.example/?\"\nformat = \"json-lines\"\nfilters = [\"#\"]"]
    {
        let first = load(&dir, text).unwrap();
        let shown = first.show().replace("# url = \"http://a.example/\"  # what", "url = \"http://a.example/?\"  # what");
        assert_eq!(load(&dir, &shown).unwrap().config, first.config, "{text}");
    }
}

#[test]
fn no_secret_is_shown() {
    let dir = Scratch::new();
    dir.file("bearer", "Bearer hunter2\n");
    let text = "[http]\nurl = \"https://a.example/b?token=hunter2\"\nformat = \"json-lines\"\nfilters = [\"#\"]\napi_key_file = \"bearer\"";
    let loaded = load(&dir, text).unwrap();
    assert!(loaded.config.http[0].url.ends_with("?token=hunter2"));
    let url = Url::parse(&loaded.config.http[0].url).unwrap();
    for shown in [format!("{loaded:?}"), format!("{loaded:#?}"), loaded.show(), format!("{url:?}")] {
        assert!(shown.contains("https://a.example/b") && !shown.contains("hunter2"), "{shown}");
    }
    // what lacks its end is no address to post to
    let error = load(&dir, &loaded.show()).unwrap_err().to_string();
    assert!(error.ends_with(": `url` is missing: write the address of the backend, such as \"https://backend.example\""), "{error}");
}

#[test]
fn no_message_shows_what_may_be_a_secret() {
    let dir = Scratch::new();
    dir.file("key", "hunter2\u{1}\n");
    for text in [
        "url = \"https://boat:hunter2@a.example\"",
        "url = \"https://hunter2@a.example#x\"",
        "url = \"https://boat:hunter2/x@a.example\"",
        "url = \"https://boat:hunter2?@a.example\"",
        "url = \"boat:hunter2@a.example\"",
        "url = \"a.example/x?token=hunter2\"",
        "url = \"a.example?token=hunter2&to=http://b\"",
        "url = \"ftp://a.example?token=hunter2\"",
        "url = \"https://a.example/?token=hunter2#x\"",
        "url = \"https://a.example/?token=hunter2 \"",
        "url = \"https://a.example/?token=hunter2\\u00fc\"",
        "url = \"https://a.example:x/?token=hunter2\"",
        "url = \"https://a.example/?token=hunter2\"",
        "url = \"https://a.example\"\napi_key = \"hunter2\"",
        "url = \"https://a.example\"\napi_key_header = \"X-API-Key: hunter2\"",
        "url = \"https://a.example\"\napi_key_header = \"Bearer hunter2\"",
        "url = \"https://a.example\"\napi_key_file = \"key\"",
        "url = \"https://a.example\"\napi_key_file = \"hunter2\"",
        &format!("url = \"https://a.example\"\napi_key_file = \"{}\"", "hunter2".repeat(100)),
    ] {
        let error = load(&dir, &format!("[http]\n{text}")).unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{text}: {error}");
    }
}

#[test]
fn refused_urls() {
    let long = format!("https://a.example/{}", "x".repeat(2048));
    let no_host = "has no host: write an address such as \"https://backend.example\"";
    let wrong_host = "has a wrong host: it must be a name, an IPv4 address, or an IPv6 address in brackets";
    let wrong_port = "has a wrong port: it must be a whole number from 1 to 65535";
    let user =
        "must not contain a user or a password: write what the backend wants to see into a file of its own and name that as `api_key_file`";
    let blank = "must not contain blanks or control characters: in a path a blank is written as %20";
    let ascii = "must be ASCII: write a host name in its xn-- form, and other characters of a path percent-encoded";
    for (url, expected) in [
        ("", "cannot be empty: write an address such as \"https://backend.example\""),
        (&long, "has at most 2048 bytes, this has 2066"),
        (" https://a.example", blank),
        ("https://a.example/\u{7f}", blank),
        ("https://a.example/\u{a0}", blank),
        ("a.example/b", "has no scheme: write \"https://a.example/…\""),
        ("a.example:8443", "has no scheme: write \"https://a.example:8443/…\""),
        ("[::1]/?to=https://b", "has no scheme: write \"https://[::1]/…\""),
        ("/b", "has no scheme: write \"https://backend.example\""),
        ("https:/a.example", "has no scheme: write \"https://a.example/…\""),
        ("https//a.example/b?c", "has no scheme: write \"https://a.example/…\""),
        ("http//192.168.1.2:8080", "has no scheme: write \"http://192.168.1.2:8080/…\""),
        ("https//", "has no scheme: write \"https://backend.example\""),
        ("https.example/b", "has no scheme: write \"https://https.example/…\""),
        ("mqtt://a.example", "must begin with \"https://\" or \"http://\", not \"mqtt://\""),
        ("://a.example", "must begin with \"https://\" or \"http://\", not \"://\""),
        ("https://", no_host),
        ("https:///b", no_host),
        ("https://:443", no_host),
        ("https://?b", no_host),
        ("https://u:p@a.example", user),
        ("https://a.example/#b", "must not have a fragment, the part from `#` on: it is never sent"),
        ("https://b\u{fc}cher.example", ascii),
        ("https://a.example/\u{fc}", ascii),
        ("https://a,b", wrong_host),
        ("https://[a.example]", wrong_host),
        ("https://[::1", wrong_host),
        ("https://[fe80::1%25eth0]", wrong_host),
        ("https://::1", no_host),
        ("https://a:0", wrong_port),
        ("https://a:", wrong_port),
        ("https://a:65536", wrong_port),
        ("https://a:+1", wrong_port),
        ("https://a:1:2", wrong_port),
        ("https://[::1]1", wrong_port),
    ] {
        assert_eq!(Url::parse(url).unwrap_err(), expected, "{url}");
    }
}

#[test]
fn refused_in_the_file() {
    let filters = "such as [\"battery/+/Soc\", \"vebus/#\"]";
    let nine = "[[http]]\nurl = \"https://a.example\"\n".repeat(9);
    let table: &[(&str, &str)] = &[
        // sections
        ("http = \"https://a.example\"", "c.toml:1: `http` is a section: write [[http]] on a line of its own, and its keys below"),
        ("http = [\"https://a.example\"]", "c.toml:1: `http` is a section: write [[http]] on a line of its own, and its keys below"),
        ("[[https]]\nurl = \"\"", "c.toml:1: unknown section [https]; did you mean [[http]]?"),
        ("[[mqtt]]\nport = 1", "c.toml:1: `mqtt` is a section: write [mqtt] on a line of its own, and its keys below"),
        ("[http]\n[[http]]", "c.toml:2: not TOML: duplicate key"),
        (&nine, "c.toml:17: there are 9 targets, the most is 8: remove this one and those below"),
        // keys
        ("[[http]]\n[[http]]\nulr = \"\"", "c.toml:3: unknown key `ulr` in [[http]]; did you mean `url`?"),
        (
            "[http]\nfrobnicate = 1",
            "c.toml:2: unknown key `frobnicate` in [[http]]; known: name, url, format, filters, api_key_file, api_key_header, timeout, \
             connect_timeout, update_interval, cerbo_serial, ca_file, gzip, catch_up_rate, queue_records, queue_bytes",
        ),
        ("url = \"\"", "c.toml:1: `url` belongs in [[http]]"),
        ("[bridge]\nca_file = \"\"", "c.toml:2: `ca_file` belongs in [mqtt] or in [[http]]"),
        (
            "[http]\napi_key = \"x\"",
            "c.toml:2: a secret does not belong here: write it into a file of its own and name that as `api_key_file`",
        ),
        // values
        ("[http]\nname = \"a b\"", "c.toml:2: `name`: must be 1 to 32 letters, digits, `-` or `_`, not \"a b\""),
        ("[http]\nname = \"\"", "c.toml:2: `name`: must be 1 to 32 letters, digits, `-` or `_`, not \"\""),
        ("[http]\nname = \"..\"", "c.toml:2: `name`: must be 1 to 32 letters, digits, `-` or `_`, not \"..\""),
        (
            "[http]\nname = \"123456789012345678901234567890123\"",
            "c.toml:2: `name`: must be 1 to 32 letters, digits, `-` or `_`, not \"123456789012345678901234567890123\"",
        ),
        ("[http]\nname = 1", "c.toml:2: `name`: must be a name as text, such as \"home\", not 1"),
        ("[http]\nurl = true", "c.toml:2: `url`: must be an address as text, such as \"https://backend.example\", not true"),
        ("[http]\nurl = \"a.example\"", "c.toml:2: `url`: has no scheme: write \"https://a.example/…\""),
        ("[http]\nformat = \"json\"", "c.toml:2: `format`: must be \"victron-measurements\" or \"json-lines\", not \"json\""),
        ("[http]\nfilters = \"#\"", &format!("c.toml:2: `filters`: must be a list of filters, {filters}, not \"#\"")),
        ("[http]\nfilters = []", "c.toml:2: `filters`: must not be empty: nothing would be sent; [\"#\"] is everything"),
        ("[http]\nfilters = [\n\"a#\"]", "c.toml:3: `filters`: \"a#\": `+` and `#` stand for whole levels: they cannot be part of a word"),
        (
            "[http]\napi_key_header = \"X API Key\"",
            "c.toml:2: `api_key_header`: must be the name of a header alone, such as \"X-API-Key\" or \"Authorization\"; its value is in `api_key_file`",
        ),
        (
            "[http]\napi_key_header = \"content-TYPE\"",
            "c.toml:2: `api_key_header`: must not be Content-Type, which says how the measurement is carried: name the header the backend wants the key in",
        ),
        ("[http]\ntimeout = 0", "c.toml:2: `timeout`: must be a number of seconds from 0.1 to 300, not 0"),
        ("[http]\ntimeout = 300.1", "c.toml:2: `timeout`: must be a number of seconds from 0.1 to 300, not 300.1"),
        ("[http]\nconnect_timeout = \"5\"", "c.toml:2: `connect_timeout`: must be a number of seconds from 0.1 to 300, not \"5\""),
        ("[http]\nupdate_interval = 0.04", "c.toml:2: `update_interval`: must be a number of seconds from 0.05 to 86400, not 0.04"),
        ("[http]\nupdate_interval = inf", "c.toml:2: `update_interval`: must be a number of seconds from 0.05 to 86400, not inf"),
        ("[http]\ncerbo_serial = \"\"", "c.toml:2: `cerbo_serial`: a serial number cannot be empty: write one, or leave the key out"),
        ("[http]\nca_file = \"\"", "c.toml:2: `ca_file`: must be the path of a file"),
        ("[http]\ngzip = 1", "c.toml:2: `gzip`: must be true or false, not 1"),
        ("[http]\ncatch_up_rate = 0", "c.toml:2: `catch_up_rate`: must be a number of posts a second from 0.01 to 1000, not 0"),
        ("[http]\ncatch_up_rate = nan", "c.toml:2: `catch_up_rate`: must be a number of posts a second from 0.01 to 1000, not nan"),
        ("[http]\nqueue_records = 0", "c.toml:2: `queue_records`: must be a whole number from 1 to 1000000, not 0"),
        ("[http]\nqueue_records = 1.5", "c.toml:2: `queue_records`: must be a whole number from 1 to 1000000, not 1.5"),
        ("[http]\nqueue_bytes = 65535", "c.toml:2: `queue_bytes`: must be a whole number from 65536 to 1073741824, not 65535"),
    ];
    for (text, expected) in table {
        assert_eq!(mistakes(text), *expected, "{text}");
    }
}

#[test]
fn refused_together() {
    let url = "url = \"https://a.example\"";
    let victron = |keys: &str| format!("[[http]]\n{url}\n{keys}");
    let table = [
        ("[http]".into(), "c.toml:1: `url` is missing: write the address of the backend, such as \"https://backend.example\""),
        (
            victron("[[http]]\ngzip = true"),
            "c.toml:3: `url` is missing: write the address of the backend, such as \"https://backend.example\"",
        ),
        (
            victron(&format!("name = \"a\"\n[[http]]\n{url}\nname = \"a\"")),
            "c.toml:6: two targets have the name \"a\", the other one is at c.toml:3: write another name for one of them",
        ),
        (
            victron(&format!("name = \"2\"\n[[http]]\n{url}")),
            "c.toml:4: two targets have the name \"2\", the other one is at c.toml:3: write another name for one of them (without `name` it is the number)",
        ),
        (
            victron("format = \"json-lines\""),
            "c.toml:3: \"json-lines\" needs `filters`, which say what is sent, such as [\"battery/+/Soc\"]",
        ),
        (victron("filters = [\"#\"]"), "c.toml:3: `filters` are for `format = \"json-lines\"`: write that, or remove them"),
        (
            "[http]\nurl = \"https://a.example?b\"".into(),
            "c.toml:2: `url`: must not have a query, the part from `?` on: it is the base to which /api/victron/measurements is added",
        ),
        (
            "[http]\nurl = \"http://a.example\"\nca_file = \"cert.pem\"".into(),
            "c.toml:3: `ca_file` is for https, and the URL begins with http: correct the URL, or remove `ca_file`",
        ),
        (victron("ca_file = \"none.pem\""), "c.toml:3: cannot read the CA file none.pem: no such file; correct the path"),
        (
            victron("api_key_file = \"none\""),
            "c.toml:3: there is no such API key file: write the API key into a file of its own, and the path of that file here",
        ),
        (
            victron("api_key_file = \"none.key\""),
            "c.toml:3: cannot read the API key file none.key: no such file; correct the path, or make it readable",
        ),
        (
            victron("api_key_file = \"keys/none\""),
            "c.toml:3: cannot read the API key file keys/none: no such file; correct the path, or make it readable",
        ),
        (
            victron("api_key_file = \"/dev/zero\""),
            "c.toml:3: cannot read the API key file /dev/zero: it is not a regular file, but a device; correct the path, or make it readable",
        ),
        (
            victron("ca_file = \"/dev/zero\""),
            "c.toml:3: cannot read the CA file /dev/zero: it is not a regular file, but a device; correct the path",
        ),
        (
            victron("api_key_file = \"large\""),
            "c.toml:3: cannot read the API key file large: it is larger than 4096 bytes; correct the path, or make it readable",
        ),
        (victron("api_key_file = \"empty\""), "c.toml:3: the API key file empty has no API key: its first line is empty"),
        (victron("api_key_file = \"latin1\""), "c.toml:3: the API key file latin1 is not UTF-8 text"),
        (
            "log_level = \"info\"\n[[http]]\nca_file = \"none.pem\"\nname = \"2\"\n[[http]]\nfilters = [\"#\"]".into(),
            "c.toml:5: two targets have the name \"2\", the other one is at c.toml:4: write another name for one of them (without `name` it is the number)\n\
             c.toml:2: `url` is missing: write the address of the backend, such as \"https://backend.example\"\n\
             c.toml:3: cannot read the CA file none.pem: no such file; correct the path\n\
             c.toml:6: `filters` are for `format = \"json-lines\"`: write that, or remove them\n\
             c.toml:5: `url` is missing: write the address of the backend, such as \"https://backend.example\"",
        ),
    ];
    for (text, expected) in table {
        assert_eq!(mistakes(&text), expected, "{text}");
    }
}

#[test]
fn an_api_key_is_the_value_of_a_header() {
    let dir = Scratch::new();
    let key = |content: &[u8]| {
        dir.file("key", content);
        let loaded = load(&dir, "[http]\nurl = \"https://a.example\"\napi_key_file = \"key\"");
        loaded.map(|loaded| loaded.config.http[0].api_key.as_ref().unwrap().reveal().to_owned()).map_err(|error| {
            let error = error.to_string().replace(&format!("{}/", dir.path().display()), "");
            error.strip_prefix("c.toml:3: ").unwrap().to_owned()
        })
    };
    let unfit = "the API key in key cannot be sent in a header: it must be ASCII, without control characters";
    for (content, expected) in [
        ("~!key", Ok("~!key")),
        ("  Bearer a b \t\r\n\u{fc}", Err(unfit)),
        ("  Bearer a b \r\n\u{fc}", Ok("Bearer a b")),
        ("\u{feff}key\n", Err(unfit)),
        ("k\u{e9}y\n", Err(unfit)),
        ("key\u{7f}\n", Err(unfit)),
        ("key\rX-Other: 1\n", Err(unfit)),
        (" \nkey\n", Err("the API key file key has no API key: its first line is blank")),
    ] {
        assert_eq!(key(content.as_bytes()).as_deref().map_err(String::as_str), expected, "{content:?}");
    }
}

#[test]
fn warned_about() {
    let no_key = "`api_key_file` is not set: the backend will answer 401; name the file with the key it was given";
    let never = "the queue never empties after an outage: `catch_up_rate` must be more than one post in each `update_interval`";
    let table = [
        ("url = \"https://a.example\"\napi_key_file = \"password\"", None),
        ("url = \"https://a.example\"", Some(format!("c.toml:1: {no_key}"))),
        ("url = \"https://a.example\"\nformat = \"json-lines\"\nfilters = [\"#\"]", None),
        (
            "url = \"https://a.example\"\nformat = \"json-lines\"\nfilters = [\"#\"]\napi_key_header = \"Authorization\"",
            Some("c.toml:5: `api_key_header` has no effect, as there is no `api_key_file`".into()),
        ),
        ("url = \"http://localhost:8080\"\napi_key_file = \"password\"", None),
        ("url = \"http://127.0.0.2\"\napi_key_file = \"password\"", None),
        ("url = \"http://[::1]:8080\"\napi_key_file = \"password\"", None),
        (
            "url = \"http://192.168.1.2:8080\"\napi_key_file = \"password\"",
            Some("c.toml:3: the API key crosses the network to 192.168.1.2 readable by anyone: use https".into()),
        ),
        (
            "url = \"https://a.example\"\napi_key_file = \"public\"",
            Some("c.toml:3: everyone on this machine can read public: chmod 600 public".into()),
        ),
        (
            "url = \"https://a.example\"\napi_key_file = \"password\"\nconnect_timeout = 10.5",
            Some("c.toml:4: `connect_timeout` has no effect, as `timeout`, which is for the whole, is 10 s".into()),
        ),
        ("url = \"https://a.example\"\napi_key_file = \"password\"\nconnect_timeout = 10\ntimeout = 10", None),
        ("url = \"https://a.example\"\napi_key_file = \"password\"\ntimeout = 1", None),
        ("url = \"https://a.example\"\napi_key_file = \"password\"\nupdate_interval = 0.5", None),
        ("url = \"https://a.example\"\napi_key_file = \"password\"\nupdate_interval = 0.1", Some(format!("c.toml:4: {never}"))),
        (
            "url = \"https://a.example\"\napi_key_file = \"password\"\nupdate_interval = 30\ncatch_up_rate = 0.02",
            Some(format!("c.toml:5: {never}")),
        ),
        ("url = \"https://a.example/victron\"\napi_key_file = \"password\"", None),
        ("url = \"https://a.example/b-api\"\napi_key_file = \"password\"", None),
        ("url = \"https://a.example/b/api/victron/measurements/\"\napi_key_file = \"password\"", None),
        ("url = \"https://a.example/api\"\nformat = \"json-lines\"\nfilters = [\"#\"]", None),
    ];
    for (text, expected) in table {
        assert_eq!(warnings(&format!("[http]\n{text}")), Vec::from_iter(expected), "{text}");
    }
    for part in ["/api", "/API/Victron", "/Api/victron/measurements", "/victron/measurements", "/measurements"] {
        let text = format!("[http]\nurl = \"https://a.example{part}/\"\napi_key_file = \"password\"");
        let whole = format!("https://a.example{part}/api/victron/measurements");
        let expected = format!(
            "c.toml:2: `url`: /api/victron/measurements is added to it, which gives {whole}: leave \"{part}\" out, unless it is twice there"
        );
        assert_eq!(warnings(&text), [expected]);
    }
}
