/** Texts that people read. */
import * as z from 'zod';

// Control characters, bidirectional overrides, and what else makes a text read as something it is not: as enrollment has it.
const UNPRINTABLE = /[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Zl}\p{Zp}]/u;

/** A text of one line, in NFC and without spaces around it, of `min` to `max` characters. */
export function printable(min: number, max: number): z.ZodType<string, string> {
  return z
    .string()
    .max(4 * max)
    .transform((text) => text.normalize('NFC').trim())
    .refine((text) => [...text].length >= min && [...text].length <= max && !UNPRINTABLE.test(text), `must be ${min} to ${max} printable characters`);
}
