//! Whether a schedule is well formed (`robfig/cron`, standard form: minute, hour, day, month, weekday).

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const DESCRIPTORS: [&str; 7] = ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];

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

/// Checks a schedule.
///
/// # Errors
/// What is wrong with it, in the parser's words.
pub fn check(schedule: &str) -> Result<(), String> {
    let schedule = schedule.trim();
    if let Some(every) = schedule.strip_prefix("@every ") {
        let is_duration = every.ends_with(['h', 'm', 's']) && every.starts_with(|first: char| first.is_ascii_digit());
        return if is_duration { Ok(()) } else { Err(format!("failed to parse duration {schedule}: invalid duration")) };
    }
    if schedule.starts_with('@') {
        return if DESCRIPTORS.contains(&schedule) { Ok(()) } else { Err(format!("unrecognized descriptor: {schedule}")) };
    }
    let fields: Vec<&str> = schedule.split_whitespace().filter(|field| !field.contains("TZ=")).collect();
    if fields.len() != FIELDS.len() {
        let quoted: Vec<String> = fields.iter().map(|field| format!("{field:?}")).collect();
        return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), quoted.join(" ")));
    }
    fields.iter().zip(&FIELDS).try_for_each(|(text, field)| text.split(',').try_for_each(|range| field.check(range)))
}

impl Field {
    fn check(&self, range: &str) -> Result<(), String> {
        let (span, step) = range.split_once('/').map_or((range, None), |(span, step)| (span, Some(step)));
        let (low, high) = match span {
            "*" | "?" => (self.min, self.max),
            _ => {
                let (low, high) = span.split_once('-').unwrap_or((span, span));
                let low = self.number(low)?;
                (low, if low.to_string() == high { low } else { self.number(high)? })
            }
        };
        if let Some(step) = step
            && number(step)? == 0
        {
            return Err(format!("step of range should be a positive number: {range}"));
        }
        if low < self.min {
            return Err(format!("beginning of range ({low}) below minimum ({}): {range}", self.min));
        }
        if high > self.max {
            return Err(format!("end of range ({high}) above maximum ({}): {range}", self.max));
        }
        if low > high {
            return Err(format!("beginning of range ({low}) beyond end of range ({high}): {range}"));
        }
        Ok(())
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
    text.parse().map_err(|_| format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules() {
        for schedule in ["* * * * *", "*/5 0-6,12 1 jan-MAR mon", "@hourly", "@every 5m", "0 0 1 1 ?", "TZ=UTC 0 0 * * *"] {
            assert_eq!(check(schedule), Ok(()), "{schedule}");
        }
        let table = [
            ("* * * *", "expected exactly 5 fields, found 4: [\"*\" \"*\" \"*\" \"*\"]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("@never", "unrecognized descriptor: @never"),
        ];
        for (schedule, why) in table {
            assert_eq!(check(schedule), Err(why.to_owned()), "{schedule}");
        }
        assert!(check("a * * * *").is_err());
    }
}
