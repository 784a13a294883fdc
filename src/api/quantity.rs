//! [`Quantity`]: an amount of a resource (`500m`, `1.5Gi`, `12e6`), after `apimachinery/pkg/api/resource`.
//!
//! The value is an exact decimal in billionths; it is never a floating point number. A quantity remembers the kind of suffix it
//! was written with and prints itself in canonical form: no fraction, no lost precision, the largest suffix that fits.

use std::cmp::Ordering;
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Neg, Sub, SubAssign};
use std::str::FromStr;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Typed;

/// Billionths in one.
const NANO: i128 = 1_000_000_000;
/// A quantity with a binary suffix is capped here, silently, as upstream does.
const BINARY_MAX: i128 = i64::MAX as i128 * NANO;
const BINARY_SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
const DECIMAL_SUFFIXES: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];

/// Why a text is no quantity, in upstream's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// The three ways to write a quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// `12e6`
    DecimalExponent,
    /// `12Mi`
    BinarySi,
    /// `12M`
    #[default]
    DecimalSi,
}

/// An exact amount. Equality and order are those of the value, whatever the format.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quantity {
    nano: i128,
    format: Format,
}

impl Quantity {
    /// Zero.
    pub const ZERO: Self = Self { nano: 0, format: Format::DecimalSi };

    /// A whole number.
    pub fn new(value: i64, format: Format) -> Self {
        Self { nano: i128::from(value) * NANO, format }
    }

    /// A number of thousandths.
    pub fn from_milli(value: i64, format: Format) -> Self {
        Self { nano: i128::from(value) * (NANO / 1000), format }
    }

    /// Reads a quantity; precision below a billionth is rounded away from zero.
    ///
    /// # Errors
    /// [`QuantityError`], also for amounts beyond about 10^29.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        let parts = Parts::split(text)?;
        let (base, exponent, mut format) = interpret(parts.suffix)?;
        let digits = format!("{}{}", parts.whole, parts.fraction);
        let digits = if digits.is_empty() { "0" } else { &digits };
        let mantissa: i128 = digits.parse().map_err(|_| QuantityError::Numeric)?;
        let places = i32::try_from(parts.fraction.len()).map_err(|_| QuantityError::Numeric)?;
        let mut nano = match base {
            2 => {
                let scaled = mantissa.checked_mul(1 << exponent).ok_or(QuantityError::Numeric)?;
                scale_away(scaled, 9 - places).unwrap_or(BINARY_MAX).min(BINARY_MAX)
            }
            _ => scale_away(mantissa, 9 + exponent.saturating_sub(places)).ok_or(QuantityError::Numeric)?,
        };
        if format == Format::BinarySi && nano > 0 && nano < NANO {
            format = Format::DecimalSi;
        }
        if parts.negative {
            nano = -nano;
        }
        Ok(Self { nano, format })
    }

    /// The format that this quantity prints itself in, where the value allows.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Whether the amount is zero.
    pub fn is_zero(&self) -> bool {
        self.nano == 0
    }

    /// Whether the amount is below zero.
    pub fn is_negative(&self) -> bool {
        self.nano < 0
    }

    /// The whole number, rounded away from zero, at most what fits.
    pub fn value(&self) -> i64 {
        clamp(divide_away(self.nano, NANO))
    }

    /// Thousandths, rounded away from zero, at most what fits: cpu.
    pub fn milli_value(&self) -> i64 {
        clamp(divide_away(self.nano, NANO / 1000))
    }

    /// Billionths.
    pub fn nano_value(&self) -> i128 {
        self.nano
    }

    /// The amount as a floating point number, for ratios and metrics.
    pub fn to_f64(&self) -> f64 {
        self.nano as f64 / NANO as f64
    }

    /// Whether the amount is a whole number.
    pub fn is_whole(&self) -> bool {
        self.nano % NANO == 0
    }

    /// The amount `times` times, at most what fits.
    #[must_use]
    pub fn multiplied(self, times: i64) -> Self {
        Self { nano: self.nano.saturating_mul(i128::from(times)), format: self.format }
    }

    /// Rounded away from zero to thousandths, as upstream's defaulting does with resource lists.
    #[must_use]
    pub fn rounded_to_milli(self) -> Self {
        let step = NANO / 1000;
        Self { nano: divide_away(self.nano, step).saturating_mul(step), format: self.format }
    }

    /// Compares with a text; a text that is no quantity is an error.
    ///
    /// # Errors
    /// [`QuantityError`].
    pub fn compare_text(&self, text: &str) -> Result<Ordering, QuantityError> {
        Ok(self.cmp(&Self::parse(text)?))
    }

    /// As the typed structs hold it.
    pub fn to_typed(self) -> Typed {
        Typed(self.to_string())
    }

    fn decimal(&self, format: Format, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut mantissa, mut exponent) = (self.nano, -9_i32);
        while mantissa % 1000 == 0 {
            mantissa /= 1000;
            exponent += 3;
        }
        let suffix = DECIMAL_SUFFIXES.iter().find(|(_, power)| *power == exponent).map(|(suffix, _)| *suffix);
        match suffix {
            Some(suffix) if format == Format::DecimalSi => write!(out, "{mantissa}{suffix}"),
            _ if exponent == 0 => write!(out, "{mantissa}"),
            _ => write!(out, "{mantissa}e{exponent}"),
        }
    }

    fn binary(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut mantissa = self.nano / NANO;
        let mut power = 0;
        while mantissa % 1024 == 0 && power + 1 < BINARY_SUFFIXES.len() {
            mantissa /= 1024;
            power += 1;
        }
        write!(out, "{mantissa}{}", BINARY_SUFFIXES[power])
    }
}

/// The pieces of a quantity's text.
struct Parts<'a> {
    negative: bool,
    whole: &'a str,
    fraction: &'a str,
    suffix: &'a str,
}

impl<'a> Parts<'a> {
    fn split(text: &'a str) -> Result<Self, QuantityError> {
        let digits_of = |text: &'a str| text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
        let (negative, unsigned) = match text.as_bytes().first() {
            None => return Err(QuantityError::Format),
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            Some(_) => (false, text),
        };
        let (whole, rest) = digits_of(unsigned);
        let (fraction, suffix) = match rest.strip_prefix('.') {
            Some(rest) => digits_of(rest),
            None => ("", rest),
        };
        let letters = suffix.find(|c: char| !"eEinumkKMGTP".contains(c)).unwrap_or(suffix.len());
        let tail = suffix[letters..].strip_prefix(['+', '-']).unwrap_or(&suffix[letters..]);
        if !tail.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(QuantityError::Format);
        }
        if whole.is_empty() && fraction.is_empty() && (!suffix.is_empty() || rest.starts_with('.')) {
            return Err(if suffix.is_empty() { QuantityError::Numeric } else { QuantityError::Format });
        }
        Ok(Self { negative, whole, fraction, suffix })
    }
}

/// Base, exponent and format of a suffix.
fn interpret(suffix: &str) -> Result<(u8, i32, Format), QuantityError> {
    if let Some((_, power)) = DECIMAL_SUFFIXES.iter().find(|(known, _)| *known == suffix) {
        return Ok((10, *power, Format::DecimalSi));
    }
    if let Some(power) = (1_i32..).zip(&BINARY_SUFFIXES[1..]).find(|(_, known)| **known == suffix).map(|(power, _)| power) {
        return Ok((2, power * 10, Format::BinarySi));
    }
    let exponent = suffix.strip_prefix(['e', 'E']).ok_or(QuantityError::Suffix)?;
    let exponent = exponent.parse::<i64>().map_err(|_| QuantityError::Suffix)?;
    let exponent = i32::try_from(exponent).map_err(|_| QuantityError::Suffix)?;
    Ok((10, exponent, Format::DecimalExponent))
}

/// `value` times ten to the `power`, rounded away from zero; `None` if it does not fit.
fn scale_away(value: i128, power: i32) -> Option<i128> {
    if value == 0 {
        return Some(0);
    }
    match u32::try_from(power) {
        Ok(power) => value.checked_mul(10_i128.checked_pow(power)?),
        Err(_) => Some(10_i128.checked_pow(power.unsigned_abs()).map_or(value.signum(), |step| divide_away(value, step))),
    }
}

/// Division that rounds away from zero.
fn divide_away(value: i128, step: i128) -> i128 {
    value / step + if value % step == 0 { 0 } else { value.signum() }
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

impl fmt::Display for Quantity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nano == 0 {
            return out.write_str("0");
        }
        match self.format {
            Format::BinarySi if self.nano.abs() >= 1024 * NANO && self.is_whole() => self.binary(out),
            Format::BinarySi => self.decimal(Format::DecimalSi, out),
            format => self.decimal(format, out),
        }
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        Self::parse(text)
    }
}

impl TryFrom<&Typed> for Quantity {
    type Error = QuantityError;

    fn try_from(typed: &Typed) -> Result<Self, QuantityError> {
        Self::parse(&typed.0)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nano.cmp(&other.nano)
    }
}

impl Add for Quantity {
    type Output = Self;

    /// The sum, in the format of the left side unless that is zero.
    fn add(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nano: self.nano.saturating_add(other.nano), format }
    }
}

impl Sub for Quantity {
    type Output = Self;

    /// The difference, in the format of the left side unless that is zero.
    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

impl Neg for Quantity {
    type Output = Self;

    fn neg(self) -> Self {
        Self { nano: self.nano.saturating_neg(), format: self.format }
    }
}

impl AddAssign for Quantity {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl SubAssign for Quantity {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

impl Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_in_canonical_form() {
        for (text, canonical, milli) in [
            ("0", "0", 0),
            ("0Mi", "0", 0),
            ("0.5", "500m", 500),
            (".5", "500m", 500),
            ("1.", "1", 1000),
            ("+1", "1", 1000),
            ("-1.5", "-1500m", -1500),
            ("1000m", "1", 1000),
            ("100m", "100m", 100),
            ("1500m", "1500m", 1500),
            ("1024", "1024", 1_024_000),
            ("1000", "1k", 1_000_000),
            ("1024Mi", "1Gi", 1_073_741_824_000),
            ("1.5Gi", "1536Mi", 1_610_612_736_000),
            ("0.5Mi", "512Ki", 524_288_000),
            ("0.5Ki", "512", 512_000),
            ("1Ki", "1Ki", 1_024_000),
            ("100u", "100u", 1),
            ("0.9n", "1n", 1),
            ("12e6", "12e6", 12_000_000_000),
            ("12E6", "12e6", 12_000_000_000),
            ("1e-3", "1e-3", 1),
            ("10e-1", "1", 1000),
            ("1E", "1E", i64::MAX),
            ("1000E", "1e21", i64::MAX),
            ("9Ei", "9223372036854775807", i64::MAX),
            ("0.001Ki", "1024m", 1024),
        ] {
            let quantity = Quantity::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(quantity.to_string(), canonical, "{text}");
            assert_eq!(quantity.milli_value(), milli, "{text}");
            assert_eq!(Quantity::parse(canonical), Ok(quantity), "{canonical} read again");
        }
    }

    #[test]
    fn refuses_in_upstreams_words() {
        for (text, error) in [
            ("", QuantityError::Format),
            ("1 ", QuantityError::Format),
            ("abc", QuantityError::Format),
            ("1.2.3", QuantityError::Format),
            ("1i", QuantityError::Suffix),
            ("1mi", QuantityError::Suffix),
            ("1kk", QuantityError::Suffix),
            ("1e", QuantityError::Suffix),
            (".", QuantityError::Numeric),
        ] {
            assert_eq!(Quantity::parse(text).map(|quantity| quantity.to_string()), Err(error), "{text:?}");
        }
    }

    #[test]
    fn calculates() {
        let parse = |text: &str| Quantity::parse(text).unwrap();
        assert_eq!((parse("1Gi") + parse("512Mi")).to_string(), "1536Mi");
        assert_eq!((Quantity::ZERO + parse("1Mi")).to_string(), "1Mi");
        assert_eq!((parse("1") - parse("250m")).to_string(), "750m");
        assert_eq!(parse("100m").multiplied(30).to_string(), "3");
        assert_eq!(["100m", "0.2"].map(parse).into_iter().sum::<Quantity>().to_string(), "300m");
        assert!(parse("1Gi") > parse("1G") && parse("1000m") == parse("1"));
        assert_eq!((parse("1.1").value(), parse("-1.1").value(), parse("0.0001").milli_value()), (2, -2, 1));
        assert_eq!(parse("0.0001").rounded_to_milli().to_string(), "1m");
    }
}
