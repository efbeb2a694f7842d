/**
 * To which models a device or a project is held: names as the providers write them, letter by letter, and beginnings of names with a
 * `*` at the end. `null` is no list, and so no limit; an empty list allows nothing.
 */
import * as z from 'zod';

const MAX_PATTERNS = 200;

export const modelPatterns = z
  .array(z.string().regex(/^(?:[!-)+-~]{1,199}\*?|\*)$/, 'must be the name of a model, or its beginning and a *'))
  .max(MAX_PATTERNS)
  .nullable()
  .describe('The models that may be called: exact names, or beginnings of names with a * at the end. Null: any. An empty list: none.');

/** Whether `model` (untrusted) is one of those that `patterns` allow. */
export function allowsModel(patterns: readonly string[], model: string): boolean {
  return patterns.some((pattern) => (pattern.endsWith('*') ? model.startsWith(pattern.slice(0, -1)) : model === pattern));
}
