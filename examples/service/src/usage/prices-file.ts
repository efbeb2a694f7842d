/** The operator's own list of prices, in place of the built-in one. */
import { readFileSync } from 'node:fs';
import { priceDocument, type PriceDocument } from './prices.ts';

/** The list in the file at `path` (trusted: the operator's), or what is wrong with it, in words for the operator. */
export function pricesIn(path: string): PriceDocument | { readonly faults: readonly string[] } {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (error) {
    return { faults: [`the file cannot be read (${(error as NodeJS.ErrnoException).code ?? 'unknown error'})`] };
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return { faults: ['the file is not JSON'] };
  }
  const parsed = priceDocument.safeParse(value);
  return parsed.success ? parsed.data : { faults: parsed.error.issues.map(({ path: at, message }) => `${at.join('.') || 'the whole'}: ${message}`) };
}
