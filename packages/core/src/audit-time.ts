/**
 * The time in an audit entry: RFC 3339 in UTC with exactly three decimals, without the platform's `Date`, so that every runtime
 * writes and accepts the same.
 */
import { UsageError } from './errors.ts';
import type { JsonValue } from './seams.ts';

const DAY_MS = 86_400_000;
const MAX_TIME_MS = 253_402_300_799_999;
const TIME_TEXT = /^\d{4}-\d\d-\d\dT([01]\d|2[0-3]):[0-5]\d:[0-5]\d\.\d{3}Z$/;
const DAYS_OF_MONTH = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] as const;

const pad = (value: number, width: number): string => String(value).padStart(width, '0');

/**
 * RFC 3339 text of a time, in UTC with exactly three decimals: `2026-01-31T23:59:59.999Z`.
 * @param timeMs Unix milliseconds, an integer from 1970 to the end of the year 9999
 * @throws UsageError `invalid_option`
 */
export function rfc3339Utc(timeMs: number): string {
  if (!Number.isInteger(timeMs) || timeMs < 0 || timeMs > MAX_TIME_MS) {
    throw new UsageError('invalid_option', 'A time must be an integer of milliseconds from 1970 to 9999.');
  }
  const ofDay = timeMs % DAY_MS;
  // Years begin in March and eras of 400 years in year 0: so the leap day is the last of its year, era and century.
  const day = (timeMs - ofDay) / DAY_MS + 719_468;
  const era = Math.floor(day / 146_097);
  const ofEra = day - era * 146_097;
  const yearOfEra = Math.floor(
    (ofEra - Math.floor(ofEra / 1460) + Math.floor(ofEra / 36_524) - Math.floor(ofEra / 146_096)) / 365,
  );
  const ofYear = ofEra - (365 * yearOfEra + Math.floor(yearOfEra / 4) - Math.floor(yearOfEra / 100));
  const fromMarch = Math.floor((5 * ofYear + 2) / 153);
  const month = fromMarch < 10 ? fromMarch + 3 : fromMarch - 9;
  const year = era * 400 + yearOfEra + (month <= 2 ? 1 : 0);
  const date = `${pad(year, 4)}-${pad(month, 2)}-${pad(ofYear - Math.floor((153 * fromMarch + 2) / 5) + 1, 2)}`;
  const minutes = Math.floor(ofDay / 60_000);
  const time = `${pad(Math.floor(minutes / 60), 2)}:${pad(minutes % 60, 2)}:${pad(Math.floor(ofDay / 1000) % 60, 2)}`;
  return `${date}T${time}.${pad(ofDay % 1000, 3)}Z`;
}

/** Whether `value` (untrusted) is a text that {@link rfc3339Utc} writes. */
export function isTimeText(value: JsonValue | undefined): boolean {
  if (typeof value !== 'string' || !TIME_TEXT.test(value)) return false;
  const year = Number(value.slice(0, 4));
  const month = Number(value.slice(5, 7));
  const day = Number(value.slice(8, 10));
  const isLeap = year % 4 === 0 && (year % 100 !== 0 || year % 400 === 0);
  const days = month === 2 && isLeap ? 29 : DAYS_OF_MONTH[month - 1];
  return year >= 1970 && days !== undefined && day >= 1 && day <= days;
}
