/**
 * `?limit&cursor` → `{data, has_more, next_cursor}`, the one form of every list. A cursor is opaque, and untrusted when it comes
 * back: it says where to go on, and every row is still subject to the policies.
 */
import type { Page, PageRequest } from '@keyguard/storage-node/postgres';
import * as z from 'zod';

export const pageQuery = z.strictObject({
  limit: z
    .string()
    .regex(/^[1-9][0-9]{0,2}$/, 'must be a whole number from 1 to 200')
    .transform(Number)
    .refine((limit) => limit <= 200, 'must be a whole number from 1 to 200')
    .optional(),
  cursor: z.string().min(1).max(512).optional(),
});

/** Ids are UUIDs; what is none is the id of nothing. */
export const idParams = z.strictObject({ id: z.uuid() });

export type PageQuery = z.infer<typeof pageQuery>;

export function pageRequest({ limit, cursor }: PageQuery): PageRequest {
  return { limit: limit ?? 50, cursor: cursor ?? null };
}

export function pageJson<T>({ items, nextCursor }: Page<T>, toJson: (item: T) => object): object {
  return { data: items.map(toJson), has_more: nextCursor !== null, next_cursor: nextCursor };
}

/** The schema of a page of `item`. */
export function pageOf<T extends z.ZodType>(item: T): z.ZodType {
  return z.object({
    data: z.array(item),
    has_more: z.boolean(),
    next_cursor: z.string().nullable().describe('The cursor of the next page.'),
  });
}

/** The schema of {@link timeJson}. */
export const time = z.iso.datetime();

/** RFC 3339 in UTC, as every time on this wire but those of the signing protocol; `null` stays `null`. */
export function timeJson(timeMs: number): string;
export function timeJson(timeMs: number | null): string | null;
export function timeJson(timeMs: number | null): string | null {
  return timeMs === null ? null : new Date(timeMs).toISOString();
}
