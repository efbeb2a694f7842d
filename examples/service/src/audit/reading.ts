/**
 * Who may read what of the audit log, and how it is asked for. Administrators, and who holds `audit:read` by a role, read all of it;
 * everyone else what they did themselves. The policies say so, and each statement here says so again: one holds without the other.
 */
import * as z from 'zod';
import { fromUtf8 } from '@keyguard/core/bytes';
import type { SqlTransaction } from '@keyguard/storage-node/postgres';
import type { Principal } from '../auth/principal.ts';
import { bytesOf, integer } from '../db/values.ts';
import { EVERYWHERE, type Access } from '../roles/access.ts';

/** Whether `principal`, for whom `tx` acts, reads the whole log now: the application and the policies' own functions must agree. */
export async function readsAll(tx: SqlTransaction, access: Access, principal: Principal): Promise<boolean> {
  if (!(await access.permissionsOn(tx, principal, EVERYWHERE)).has('audit:read')) return false;
  const { rows } = await tx.query<{ may: boolean }>(`SELECT keyguard.is_administrator() OR keyguard.acting_has_permission('audit:read', NULL) AS may`);
  return rows[0]!.may;
}

// oxlint-disable-next-line no-control-regex -- no entry has them in these members, and the database takes no NUL
const CONTROL = /[\u0000-\u001f\u007f]/;
// A copy is cut at 256 characters: what is shorter can only be equal to a whole one.
const exactly = (what: string): z.ZodOptional<z.ZodString> => z.string().min(1).max(255).refine((text) => !CONTROL.test(text), 'must not have control characters').optional().describe(what);
const number = z
  .string()
  .regex(/^(?:0|[1-9][0-9]{0,14})$/, 'must be a whole number')
  .transform(Number);
const instant = z.iso.datetime({ offset: true }).transform((text) => Date.parse(text));

/** A chain of this deployment, by its name. */
export const originQuery = { origin: exactly('Which chain, where the log was begun anew after a restore. By default the present one.') };

/** What a list and an export can be narrowed by. All that is given must hold. */
export const filterQuery = {
  ...originQuery,
  actor: exactly('Who acted: `user:…`, `device:…`, `service_account:…` or `system`.'),
  action: exactly('The action, or the beginning of its name: `secret.` finds all that was done with secrets.'),
  resource: exactly('What it was done to: `secret:…`, `device:…`.'),
  device: exactly('The id of a device.'),
  outcome: z.enum(['success', 'refused', 'failed']).optional(),
  ip: exactly('The address it came from.'),
  request_id: exactly('The id of one request.'),
  from: instant.optional().describe('Not before this time.'),
  to: instant.optional().describe('Before this time.'),
  from_seq: number.optional().describe('From this number on.'),
  to_seq: number.optional().describe('Up to and including this number.'),
};
const filters = z.object(filterQuery);
export type Filters = z.infer<typeof filters>;

/** Conditions of a statement, with their parameters in order. */
export interface Conditions {
  readonly text: string;
  readonly params: readonly unknown[];
}

/** Adds conditions one by one; what is undefined is none. */
export function conditions(): { add(text: (place: string) => string, value: unknown): void; build(): Conditions } {
  const texts: string[] = [];
  const params: unknown[] = [];
  return {
    add(text, value) {
      if (value === undefined) return;
      params.push(value);
      texts.push(text(`$${params.length}`));
    },
    build: () => ({ text: texts.join(' AND '), params }),
  };
}

const LIKE_SIGNS = /[\\%_]/g;

/** What `filters` say, for `principal`: in the statement itself, whatever the policies do. */
export function conditionsOf(asked: Filters, { origin, principal, all }: { readonly origin: string; readonly principal: Principal; readonly all: boolean }): Conditions {
  const found = conditions();
  found.add((p) => `origin = ${p}`, asked.origin ?? origin);
  if (!all) found.add((p) => `actor = ${p}`, principal.actor);
  found.add((p) => `actor = ${p}`, asked.actor);
  found.add((p) => `action LIKE ${p}`, asked.action === undefined ? undefined : `${asked.action.replaceAll(LIKE_SIGNS, '\\$&')}%`);
  found.add((p) => `resource = ${p}`, asked.resource);
  found.add((p) => `device_id = ${p}`, asked.device);
  found.add((p) => `outcome = ${p}`, asked.outcome);
  found.add((p) => `ip = ${p}`, asked.ip);
  found.add((p) => `request_id = ${p}`, asked.request_id);
  found.add((p) => `ts_ms >= ${p}::bigint`, asked.from);
  found.add((p) => `ts_ms < ${p}::bigint`, asked.to);
  found.add((p) => `seq >= ${p}::bigint`, asked.from_seq);
  found.add((p) => `seq <= ${p}::bigint`, asked.to_seq);
  return found.build();
}

export interface EntryRow {
  seq: unknown;
  entry: unknown;
}

export type EntryJson = Readonly<Record<string, unknown>> & { readonly seq: number; readonly ts: string };

/** An entry as it was chained. */
export function entryJson({ entry }: EntryRow): EntryJson {
  return JSON.parse(fromUtf8(bytesOf(entry))) as EntryJson;
}

export const seqOf = ({ seq }: EntryRow): number => integer(seq);

/** The schema of {@link entryJson}. */
export const auditEntry = z
  .looseObject({ action: z.string(), actor: z.string(), outcome: z.string(), seq: z.int(), ts: z.string() })
  .meta({ id: 'AuditEntry', description: 'As it was chained: members beside these depend on the action.' });
