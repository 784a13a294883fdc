//! The schedule of a CronJob, in the standard form of `robfig/cron` v3 (minute, hour, day, month, weekday, or a descriptor), and
//! the time zones by which it is told.
//!
//! The zones are those of the database in the executable: what a schedule means does not depend on the host.

use jiff::civil::Date;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Timestamp};

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
/// A schedule that does not come in so many years never comes.
const YEARS: i16 = 5;

struct Field {
    min: u32,
    max: u32,
    names: &'static [&'static str],
}

const FIELDS: [Field; 5] = [
    Field { min: 0, max: 59, names: &[] },
    Field { min: 0, max: 23, names: &[] },
    Field { min: 1, max: 31, names: &[] },
    Field { min: 1, max: 12, names: &MONTHS },
    Field { min: 0, max: 6, names: &DAYS },
];

/// The values of a field that fit, as bits; and whether it is `*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Values {
    bits: u64,
    is_any: bool,
}

impl Values {
    fn has(self, value: impl Into<i64>) -> bool {
        u32::try_from(value.into()).is_ok_and(|value| self.bits.checked_shr(value).is_some_and(|bits| bits & 1 == 1))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum When {
    /// Minute, hour, day, month, weekday.
    Fields([Values; 5]),
    Every(SignedDuration),
}

/// When something is to happen, again and again.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    when: When,
    /// The zone that the schedule itself names (`TZ=Europe/Berlin 0 6 * * *`).
    zone: Option<TimeZone>,
}

/// A time zone by its name, `Europe/Berlin`.
pub fn zone(name: &str) -> Option<TimeZone> {
    let zone = TimeZoneDatabase::bundled().get(name).ok()?;
    (zone.iana_name() == Some(name)).then_some(zone)
}

impl Schedule {
    /// Reads a schedule.
    ///
    /// # Errors
    /// What is wrong with it, in the parser's words.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("empty spec string".to_owned());
        }
        let (zone, rest) = match text.strip_prefix("TZ=").or_else(|| text.strip_prefix("CRON_TZ=")) {
            Some(named) => {
                let (name, rest) = named.split_once(' ').unwrap_or((named, ""));
                let zone = zone(name).ok_or_else(|| format!("provided bad location {name}: unknown time zone {name}"))?;
                (Some(zone), rest.trim())
            }
            None => (None, text),
        };
        let when = if rest.starts_with('@') { descriptor(rest)? } else { When::Fields(fields(rest)?) };
        Ok(Self { when, zone })
    }

    /// The first time after `after`; `None` if it does not come in years. `zone` counts unless the schedule names one itself.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let second = Timestamp::from_second(after.as_second()).ok()?;
        match &self.when {
            When::Every(delay) => second.checked_add(*delay).ok(),
            When::Fields(fields) => {
                let start = second.checked_add(SignedDuration::from_secs(1)).ok()?;
                first(fields, start, self.zone.as_ref().unwrap_or(zone))
            }
        }
    }
}

/// The first time from `start` on that fits. Hours go by as they really do: what falls into the hour that is left out when the
/// clocks go forward is left out, what falls into the hour that comes twice comes twice.
fn first(fields: &[Values; 5], start: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
    let [_, _, days, months, weekdays] = fields;
    let begin = |day: Date| day.to_zoned(zone.clone()).ok().map(|time| time.timestamp());
    let mut day = start.to_zoned(zone.clone()).date();
    let (last_year, mut from) = (day.year() + YEARS, start);
    while day.year() <= last_year {
        let tomorrow = day.tomorrow().ok()?;
        if !months.has(day.month()) {
            day = day.last_of_month().tomorrow().ok()?;
        } else {
            let (by_day, by_weekday) = (days.has(day.day()), weekdays.has(day.weekday().to_sunday_zero_offset()));
            let either = !days.is_any && !weekdays.is_any;
            if if either { by_day || by_weekday } else { by_day && by_weekday } {
                let found = within(fields, from, begin(tomorrow)?, zone);
                if found.is_some() {
                    return found;
                }
            }
            day = tomorrow;
        }
        from = begin(day)?;
    }
    None
}

/// The first time of a day that fits.
fn within([minutes, hours, ..]: &[Values; 5], from: Timestamp, end: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
    let mut at = from;
    while at < end {
        let time = at.to_zoned(zone.clone());
        let (minute, second) = (i64::from(time.minute()), i64::from(time.second()));
        let step = if !hours.has(time.hour()) {
            3_600 - minute * 60 - second
        } else if !minutes.has(minute) || second > 0 {
            60 - second
        } else {
            return Some(at);
        };
        at = at.checked_add(SignedDuration::from_secs(step)).ok()?;
    }
    None
}

fn descriptor(text: &str) -> Result<When, String> {
    let fixed = match text {
        "@yearly" | "@annually" => "0 0 1 1 *",
        "@monthly" => "0 0 1 * *",
        "@weekly" => "0 0 * * 0",
        "@daily" | "@midnight" => "0 0 * * *",
        "@hourly" => "0 * * * *",
        _ => {
            let every = text.strip_prefix("@every ").ok_or_else(|| format!("unrecognized descriptor: {text}"))?;
            let invalid = || format!("failed to parse duration {text}: time: invalid duration {every:?}");
            let seconds = duration(every).ok_or_else(invalid)?;
            return Ok(When::Every(SignedDuration::from_secs(seconds.max(1))));
        }
    };
    fields(fixed).map(When::Fields)
}

/// The whole seconds of a duration as Go writes it: `1h30m`, `90s`, `1.5h`.
fn duration(text: &str) -> Option<i64> {
    const UNITS: [(&str, f64); 8] =
        [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("μs", 1e-6), ("ms", 1e-3), ("h", 3_600.0), ("m", 60.0), ("s", 1.0)];
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut seconds = 0.0;
    loop {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(rest.len());
        let number: f64 = rest[..digits].parse().ok()?;
        let (unit, factor) = UNITS.iter().find(|(unit, _)| rest[digits..].starts_with(unit))?;
        seconds += number * factor;
        rest = &rest[digits + unit.len()..];
        if rest.is_empty() {
            let whole = sign * seconds;
            #[expect(clippy::cast_possible_truncation, reason = "the fraction is left out, and the range is checked")]
            return (whole.abs() < 9.3e9).then_some(whole as i64);
        }
    }
}

fn fields(text: &str) -> Result<[Values; 5], String> {
    let parts: Vec<&str> = text.split_whitespace().collect();
    let Ok(parts) = <[&str; 5]>::try_from(parts.as_slice()) else {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", parts.len(), parts.join(" ")));
    };
    let mut fields = [Values::default(); 5];
    for ((values, field), part) in fields.iter_mut().zip(&FIELDS).zip(parts) {
        for range in part.split(',').filter(|range| !range.is_empty()) {
            let more = field.range(range)?;
            *values = Values { bits: values.bits | more.bits, is_any: values.is_any || more.is_any };
        }
    }
    Ok(fields)
}

impl Field {
    fn range(&self, text: &str) -> Result<Values, String> {
        let (span, step) = match text.split('/').collect::<Vec<_>>()[..] {
            [span] => (span, None),
            [span, step] => (span, Some(number(step)?)),
            _ => return Err(format!("too many slashes: {text}")),
        };
        let (low, high, is_any) = match span.split('-').collect::<Vec<_>>()[..] {
            ["*" | "?", ..] => (self.min, self.max, step.is_none_or(|step| step <= 1)),
            [only] => {
                let low = self.number(only)?;
                (low, if step.is_some() { self.max } else { low }, false)
            }
            [low, high] => (self.number(low)?, self.number(high)?, false),
            _ => return Err(format!("too many hyphens: {text}")),
        };
        if low < self.min {
            return Err(format!("beginning of range ({low}) below minimum ({}): {text}", self.min));
        }
        if high > self.max {
            return Err(format!("end of range ({high}) above maximum ({}): {text}", self.max));
        }
        if low > high {
            return Err(format!("beginning of range ({low}) beyond end of range ({high}): {text}"));
        }
        let step = match usize::try_from(step.unwrap_or(1)) {
            Ok(0) | Err(_) => return Err(format!("step of range should be a positive number: {text}")),
            Ok(step) => step,
        };
        Ok(Values { bits: (low..=high).step_by(step).fold(0, |bits, value| bits | 1 << value), is_any })
    }

    fn number(&self, text: &str) -> Result<u32, String> {
        let lower = text.to_lowercase();
        match self.names.iter().position(|name| *name == lower) {
            Some(index) => Ok(self.min + u32::try_from(index).unwrap_or(0)),
            None => number(text),
        }
    }
}

fn number(text: &str) -> Result<u32, String> {
    let parsed: Result<i64, _> = text.parse();
    let number =
        parsed.map_err(|_| format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax"))?;
    u32::try_from(number).map_err(|_| format!("negative number ({number}) not allowed: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong() {
        let table = [
            ("", "empty spec string"),
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("* * * * * *", "expected exactly 5 fields, found 6: [* * * * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("* * * * 7", "end of range (7) above maximum (6): 7"),
            ("9-5 * * * *", "beginning of range (9) beyond end of range (5): 9-5"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("1/2/3 * * * *", "too many slashes: 1/2/3"),
            ("a * * * *", "failed to parse int from a: strconv.Atoi: parsing \"a\": invalid syntax"),
            ("@never", "unrecognized descriptor: @never"),
            ("@every x", "failed to parse duration @every x: time: invalid duration \"x\""),
            ("TZ=Mars/Base * * * * *", "provided bad location Mars/Base: unknown time zone Mars/Base"),
        ];
        for (schedule, why) in table {
            assert_eq!(Schedule::parse(schedule), Err(why.to_owned()), "{schedule}");
        }
    }

    fn times(schedule: &str, zone_name: &str, after: &str, count: usize) -> Vec<String> {
        let (schedule, zone) = (Schedule::parse(schedule).unwrap(), zone(zone_name).unwrap());
        let mut at: Timestamp = after.parse().unwrap();
        let next = std::iter::from_fn(|| {
            at = schedule.next(at, &zone)?;
            Some(at.to_string())
        });
        next.take(count).collect()
    }

    /// From the tests of robfig/cron, `spec_test.go`.
    #[test]
    fn the_next_time() {
        for (schedule, after, next) in [
            ("0/15 * * * *", "2012-07-09T14:45:00Z", "2012-07-09T15:00:00Z"),
            ("0/15 * * * *", "2012-07-09T14:59:59Z", "2012-07-09T15:00:00Z"),
            ("20-35/15 * * * *", "2012-07-09T15:45:00Z", "2012-07-09T16:20:00Z"),
            ("20/15 10/2 * * *", "2012-07-09T15:45:00Z", "2012-07-09T16:20:00Z"),
            ("0 0 */5 Apr,Aug,Oct Mon", "2012-07-15T23:35:00Z", "2012-08-01T00:00:00Z"),
            ("0 0 9-20 Apr Mon", "2012-03-31T23:59:59Z", "2012-04-02T00:00:00Z"),
            ("0 0 29 2 ?", "2012-07-09T23:35:00Z", "2016-02-29T00:00:00Z"),
            ("0 0 1 * 0", "2026-01-02T00:00:00Z", "2026-01-04T00:00:00Z"),
            ("59 23 31 dec fri", "2026-12-31T23:58:00.5Z", "2026-12-31T23:59:00Z"),
            ("@hourly", "2012-07-09T14:45:00Z", "2012-07-09T15:00:00Z"),
            ("@weekly", "2026-01-01T00:00:00Z", "2026-01-04T00:00:00Z"),
            ("@yearly", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"),
            ("@every 1h30m", "2026-01-01T00:00:00.9Z", "2026-01-01T01:30:00Z"),
            ("@every 10ms", "2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z"),
            ("TZ=Asia/Tokyo 30 4 * * *", "2026-01-01T00:00:00Z", "2026-01-01T19:30:00Z"),
        ] {
            assert_eq!(times(schedule, "UTC", after, 1), [next], "{schedule} after {after}");
        }
        assert!(times("0 0 31 2 *", "UTC", "2026-01-01T00:00:00Z", 1).is_empty());
    }

    #[test]
    fn clocks_that_go_forward_and_back() {
        // 2:30 is left out on 11 March 2012 in New York, and 1:30 comes twice on 4 November.
        assert_eq!(times("30 2 * * *", "America/New_York", "2012-03-10T12:00:00Z", 1), ["2012-03-12T06:30:00Z"]);
        let twice = ["2012-11-04T05:30:00Z", "2012-11-04T06:30:00Z", "2012-11-05T06:30:00Z"];
        assert_eq!(times("30 1 * * *", "America/New_York", "2012-11-04T03:00:00Z", 3), twice);
        let hours = ["2012-03-11T06:00:00Z", "2012-03-11T07:00:00Z", "2012-03-11T08:00:00Z"];
        assert_eq!(times("0 * * * *", "America/New_York", "2012-03-11T05:30:00Z", 3), hours);
        // In São Paulo the clocks went forward at midnight.
        assert_eq!(times("@daily", "America/Sao_Paulo", "2018-11-03T12:00:00Z", 1), ["2018-11-05T02:00:00Z"]);
    }

    #[test]
    fn zones() {
        for (name, is_known) in [
            ("UTC", true),
            ("Etc/UTC", true),
            ("Europe/Berlin", true),
            ("US/Eastern", true),
            ("europe/berlin", false),
            ("", false),
        ] {
            assert_eq!(zone(name).is_some(), is_known, "{name}");
        }
    }
}
