//! Device instances: localsettings stores the number of each service, and a number is used only while nobody else on the bus has it.
//!
//! Before a service is put on the bus, the bridge is asked who has its type and instance. If that is another service, the next number
//! that is free on the bus is claimed from localsettings, which may answer with yet another one, and that is looked at again. A service
//! that is on the bus keeps its number, whoever comes later; one that is off the bus for its silence loses it to a service that comes with
//! it, and another number is claimed at once, unless localsettings has another one for it already: what is written to the old one is for
//! the other service.

use log::Level;

use super::Devices;
use super::dialogue::Purpose;
use super::model::{Device, Key, NumberCheck, Place, Service, Silence, State};
use crate::bridge::name::NAMESPACE;
use crate::bridge::notes::Kind;
use crate::bridge::value::Value;
use crate::bridge::{Conflict, Method, Occupant, Reply, Time, limits};
use crate::text::escape;

/// The services with a type and instance, and those of the type that may have it.
type Lookup<'a> = &'a dyn Fn(&str, &str) -> Option<Vec<Occupant>>;

/// What is known of a number.
enum Verdict {
    Free,
    /// A service of the type is still being scanned: it may have the number.
    Unknown,
    /// The service that has it.
    Taken(Box<str>),
}

impl Devices {
    pub(super) fn take_instance(&mut self, now: Time, key: Key, reply: Option<Reply>) {
        let Some(place) = self.place_of(key) else { return };
        let Some(service) = self.service(place) else { return };
        match reply {
            Some(Reply::Value(value)) => match instance_of(&value, &service.kind) {
                Some(instance) => self.use_instance(now, place, instance, true),
                None => {
                    let path = instance_path(&service.slug);
                    self.end_claim(now, place);
                    self.fail_asking(now, place, &format!("localsettings does not give a number of its class at {path}"));
                }
            },
            Some(other) if !other.is_from_nobody() => {
                self.end_claim(now, place);
                self.fail_asking(now, place, &format!("localsettings does not give the number of it: {}", escape(&other.reason())));
            }
            _ => {
                self.end_claim(now, place);
                self.wait_again(now, place);
            }
        }
    }

    /// localsettings has this number for a service: it goes on once the number is known to be free, or it has to move.
    pub(super) fn use_instance(&mut self, now: Time, place: Place, instance: i32, is_answer: bool) {
        let Some(device) = self.devices.get_mut(place.0) else { return };
        let online = device.online;
        let Some(service) = device.services.get_mut(place.1) else { return };
        // a number that is set while localsettings is on the bus can change at any rate: those lines stay limited
        let once = is_answer && (service.is_new_or_shown() || (service.has_left() && service.check.is_none()));
        let known = service.instance.replace(instance).filter(|known| *known != instance);
        let (state, name) = (service.state, service.bus_name());
        let claimed = service.check.is_some_and(|check| check.claims > 0);
        if service.silence == Silence::Left {
            // its device is told of another number once that is known to be free
            if known.is_some() {
                service.check.get_or_insert(NumberCheck { until: now, claims: 0, is_due: true });
            }
            if let Some(check) = &mut service.check {
                check.is_due = true;
            }
            self.unchecked = true;
        } else if state == State::Asking {
            let check = service.check.get_or_insert(NumberCheck { until: now + limits::NUMBER_PATIENCE, claims: 0, is_due: true });
            check.is_due = true;
            self.unchecked = true;
        }
        device.owed |= known.is_some() && online;
        self.unsaved |= known.is_some();
        if let Some(known) = known.filter(|_| !claimed) {
            self.note_setting(now, Level::Info, once, || {
                format!("localsettings has instance {instance} for {name}, which had {known}: it moves to {instance}")
            });
            if matches!(state, State::Opening | State::Up) {
                self.restart(now, place);
            }
        }
    }

    /// Goes on with the services whose numbers were given by localsettings. To be called after every event; `occupants` gives the
    /// services with a type and instance ([`crate::bridge::Bridge::occupants`]).
    pub fn check_numbers(&mut self, now: Time, occupants: impl Fn(&str, &str) -> Option<Vec<Occupant>>) {
        if !std::mem::take(&mut self.unchecked) || !self.options.enabled {
            return;
        }
        self.due = None;
        // in the order of the devices and of their Status, so that the first gets the first number
        let places: Vec<Place> = self.places().collect();
        for place in places {
            self.check_number(now, place, &occupants);
            self.check_absent(now, place, &occupants);
        }
    }

    /// Services of others have come or gone, or have other numbers: [`Self::check_numbers`] looks at those of services that are off the
    /// bus for their silence.
    pub fn numbers_changed(&mut self) {
        self.unchecked |= self.devices.iter().flat_map(|device| &device.services).any(Service::is_away);
    }

    /// A service that is off the bus for its silence has lost its number if another one has it now.
    fn check_absent(&mut self, now: Time, place: Place, occupants: Lookup<'_>) {
        let Some(device) = self.devices.get(place.0).filter(|device| device.online) else { return };
        let Some(service) = device.services.get(place.1).filter(|service| service.is_away() && service.next_kind.is_none()) else { return };
        let is_off = !matches!(service.state, State::Asking | State::Opening | State::Up);
        let Some(instance) = service.instance.filter(|_| is_off) else { return };
        // localsettings has not answered yet
        if service.check.is_some_and(|check| !check.is_due) {
            return;
        }
        let claims = service.silence == Silence::Left && self.settings.is_there();
        let (key, unread) = (service.key, service.check.is_none());
        match self.verdict(place, instance, false, occupants) {
            // the answer says whether it still has that number
            Verdict::Taken(by) if claims && unread => {
                let is_asked = self.settings.asks_number(key);
                if let Some(service) = self.service_mut(place) {
                    // until then, or should there be none, nothing that is written to it is for this service
                    service.taken.get_or_insert((instance, by));
                    if is_asked {
                        return;
                    }
                    service.check = Some(NumberCheck { until: now, claims: 0, is_due: false });
                    let path = instance_path(&service.slug);
                    self.settings.ask(now, &path, Method::GetValue, Purpose::ReadInstance(key));
                }
            }
            Verdict::Taken(by) if claims => {
                self.claim_next(now, place, instance, &by, occupants);
                // no other number is to be had
                if let Some(service) = self.service_mut(place).filter(|service| service.check.is_none()) {
                    service.taken = Some((instance, by));
                }
            }
            Verdict::Taken(by) => self.lose_number(now, place, instance, &by),
            verdict => {
                if let Some(service) = self.service_mut(place).filter(|_| matches!(verdict, Verdict::Free)) {
                    service.taken.take_if(|(number, _)| *number == instance);
                }
                self.end_claim(now, place);
            }
        }
    }

    /// The number of a service that is off the bus is another's, and none can be claimed yet: its device is told once.
    fn lose_number(&mut self, now: Time, place: Place, instance: i32, by: &str) {
        let Some(service) = self.service_mut(place) else { return };
        let taken = service.taken.replace((instance, by.into()));
        let (id, kind, name) = (service.id.clone(), service.kind.clone(), service.bus_name());
        self.end_claim(now, place);
        if taken.is_some_and(|(number, _)| number == instance) {
            return;
        }
        let text = format!(
            "{by} has come with {kind}/{instance}, its type and instance, while it is off the bus: another instance is claimed once \
             localsettings is there"
        );
        self.caused(now, Level::Warn, Kind::Service, || format!("{name}: {text}"));
        let clients = self.devices.get(place.0).map(|device| device.clients.clone()).unwrap_or_default();
        self.complain(&clients, &format!("\"{id}\" ({name}): {text}"));
    }

    /// Nothing is claimed any more for a service that is off the bus for its silence: its device may be answered.
    fn end_claim(&mut self, now: Time, place: Place) {
        let service = self.service_mut(place).filter(|service| service.silence == Silence::Left);
        if service.is_some_and(|service| service.check.take().is_some()) {
            self.drive_all(now, place.0);
        }
    }

    fn check_number(&mut self, now: Time, place: Place, occupants: Lookup<'_>) {
        let Some(device) = self.devices.get(place.0) else { return };
        let Some(service) = device.services.get(place.1) else { return };
        let (State::Asking, Some(check), Some(instance)) = (service.state, service.check, service.instance) else { return };
        if !check.is_due {
            return;
        }
        if !device.online || !service.wanted || service.next_kind.is_some() {
            if let Some(service) = self.service_mut(place) {
                (service.state, service.check) = (State::Off, None);
            }
            self.drive_all(now, place.0);
            return self.finish_forgetting(now, place.0);
        }
        let is_late = now >= check.until;
        match self.verdict(place, instance, is_late, occupants) {
            Verdict::Unknown if !is_late => self.unchecked = true,
            Verdict::Free | Verdict::Unknown => {
                if let Some(service) = self.service_mut(place) {
                    service.check = None;
                    service.taken.take_if(|(number, _)| *number == instance);
                }
                self.open(now, place);
            }
            Verdict::Taken(by) => self.claim_next(now, place, instance, &by, occupants),
        }
    }

    /// Who has this number on the bus, other than the service itself; `is_late` when there is no more time to wait for who leaves.
    fn verdict(&self, place: Place, instance: i32, is_late: bool, occupants: Lookup<'_>) -> Verdict {
        let Some(service) = self.service(place) else { return Verdict::Free };
        let kind = &*service.kind;
        let uses = |other: &Service| other.uses_number(kind, instance);
        let own = self.places().filter(|other| *other != place).filter_map(|other| self.service(other)).find(|other| uses(other));
        if let Some(own) = own {
            return Verdict::Taken(own.bus_name().into());
        }
        let Some(found) = occupants(kind, &instance.to_string()) else { return Verdict::Unknown };
        let mut verdict = Verdict::Free;
        for occupant in found {
            match self.own_state(&occupant.name) {
                // another number of ours has been given up for this one, or it is the service itself
                Some(state) if state != State::Off => {}
                // one of ours has just left; whoever has its name then is another program
                Some(_) if !is_late => verdict = Verdict::Unknown,
                _ if occupant.is_scanned => return Verdict::Taken(occupant.name),
                _ => verdict = Verdict::Unknown,
            }
        }
        verdict
    }

    /// Asks localsettings for the next number that is free on the bus.
    fn claim_next(&mut self, now: Time, place: Place, instance: i32, by: &str, occupants: Lookup<'_>) {
        let above = (1..=limits::NUMBERS_TRIED).filter_map(|more| instance.checked_add(more));
        let next = above.into_iter().find(|number| !matches!(self.verdict(place, *number, true, occupants), Verdict::Taken(_)));
        let Some(service) = self.service_mut(place) else { return };
        let (key, kind, name, path) = (service.key, service.kind.clone(), service.bus_name(), instance_path(&service.slug));
        let check = service.check.as_mut().filter(|check| check.claims < limits::NUMBER_CLAIMS);
        let (Some(check), Some(next)) = (check, next) else {
            service.check = None;
            let why = format!("{kind}/{instance} is the type and instance of {by}, and no other number is to be had: set {path} by hand");
            self.fail(now, place, &why);
            return self.drive_all(now, place.0);
        };
        (check.is_due, check.claims) = (false, check.claims + 1);
        service.taken.get_or_insert_with(|| (instance, by.into()));
        self.caused(now, Level::Warn, Kind::Service, || {
            format!(
                "{name} cannot have {kind}/{instance}, which is the type and instance of {by}: claiming {kind}:{next} from localsettings"
            )
        });
        let claim = Value::Str(format!("{kind}:{next}").into());
        self.settings.ask(now, &path, Method::SetValue(claim), Purpose::Claim(key));
    }

    /// Two services have one type and instance, and one of them may be of a device.
    pub fn take_conflict(&mut self, now: Time, conflict: &Conflict) {
        self.due = None;
        let find = |name: &str| {
            let named = |place: &Place| self.service(*place).is_some_and(|service| service.bus_name() == *name);
            self.places().find(named).filter(|place| self.service(*place).is_some_and(Service::is_shown))
        };
        let number = |place: Place| self.service(place).map(|service| (service.kind.clone(), service.instance));
        match (find(&conflict.holder), find(&conflict.other)) {
            // one of ours that is about to leave
            (Some(holder), Some(other)) if number(holder) != number(other) => {}
            (None, Some(_)) if self.own_state(&conflict.holder).is_some_and(|state| state != State::Off) => {}
            // it came in between: the check before it is opened again finds another number
            (_, Some(other)) => self.restart(now, other),
            (Some(holder), None) => {
                let (Some(device), Some(service)) = (self.devices.get(holder.0), self.service(holder)) else { return };
                let text = format!(
                    "\"{}\" ({}): {} has come with {}/{}, its type and instance; it gets no topics and no writes while yours is there; \
                     give it another instance",
                    service.id,
                    conflict.holder,
                    conflict.other,
                    service.kind,
                    service.instance.unwrap_or_default()
                );
                let clients = device.clients.clone();
                self.complain(&clients, &text);
            }
            (None, None) => {}
        }
    }

    /// Tells a device which numbers it could not have, behind the answer that says which it has.
    pub(super) fn tell_taken(&mut self, index: usize) {
        let Some(device) = self.devices.get_mut(index) else { return };
        let mut texts = Vec::new();
        for service in device.services.iter_mut().filter(|service| service.wanted && !service.has_lost_number()) {
            if let (Some((number, by)), Some(instance)) = (service.taken.take(), service.instance) {
                let (kind, name) = (&service.kind, service.bus_name());
                texts.push(format!(
                    "\"{}\" ({name}): {kind}/{number} is the type and instance of {by}; it has instance {instance} instead",
                    service.id
                ));
            }
        }
        if !texts.is_empty() {
            let clients = device.clients.clone();
            self.complain(&clients, &texts.join("; "));
        }
    }

    pub(super) fn places(&self) -> impl Iterator<Item = Place> {
        let count = |device: &Device| device.services.len();
        self.devices.iter().enumerate().flat_map(move |(index, device)| (0..count(device)).map(move |service| (index, service)))
    }

    /// How a device's service stands that has this name on the bus, whichever type it had.
    fn own_state(&self, name: &str) -> Option<State> {
        let (_, slug) = name.strip_prefix(NAMESPACE)?.strip_prefix('.')?.split_once('.')?;
        let services = || self.devices.iter().flat_map(|device| &device.services).filter(|service| *service.slug == *slug);
        services().find(|service| service.state != State::Off).or_else(|| services().next()).map(|service| service.state)
    }
}

/// Where the number of a service is.
pub(super) fn instance_path(slug: &str) -> String {
    format!("/Settings/Devices/{slug}/ClassAndVrmInstance")
}

/// The number in `<class>:<number>`, if it is of this class.
pub(super) fn instance_of(value: &Value, class: &str) -> Option<i32> {
    let Value::Str(text) = value else { return None };
    let (found, number) = text.split_once(':')?;
    if found == class { number.trim().parse().ok().filter(|number| *number >= 0) } else { None }
}
