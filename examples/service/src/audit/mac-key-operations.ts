/** `/api/audit/mac-keys`: which keys the log is chained under, and a new one. No byte of a key, wrapped or not, comes through here. */
import * as z from 'zod';
import type { SqlClient } from '@keyguard/storage-node/postgres';
import { asJobs } from '../db/as-user.ts';
import { integer } from '../db/values.ts';
import { operation, type Operation } from '../http/operations.ts';
import { time, timeJson } from '../http/pagination.ts';
import { readHead } from './checkpoint-store.ts';
import type { MacRotation } from './mac-rotation.ts';

const TAG = 'Audit';

export function macKeyOperations({ sql, origin, rotation }: { readonly sql: SqlClient; readonly origin: string; readonly rotation: MacRotation }): readonly Operation[] {
  const list = operation(
    {
      id: 'listAuditMacKeys', action: 'audit_mac_key.list', method: 'get', path: '/api/audit/mac-keys', tag: TAG, access: 'administrator',
      summary: 'Show the MAC keys of the audit log, oldest first, without the keys themselves',
      answers: {
        200: {
          description: 'The keys',
          json: z.object({
            data: z.array(
              z.object({
                id: z.string(),
                state: z.enum(['pre-active', 'primary', 'decrypt-only']).describe('`pre-active`: every replica is to learn of it. `primary`: entries are written with it. `decrypt-only`: what was written with it is verified with it.'),
                created_at: time,
                is_in_use: z.boolean().describe('Whether the last entry is under it.'),
              }),
            ),
          }),
        },
      },
    },
    async () => {
      const { rows, head } = await asJobs(sql, async (tx) => ({
        head: await readHead(tx, origin),
        rows: (
          await tx.query<{ id: string; state: string; created_at_ms: unknown }>(
            `SELECT id, state, created_at_ms FROM keyguard.kek_keys WHERE purpose = 'audit-mac' AND state IN ('pre-active', 'primary', 'decrypt-only') ORDER BY created_at_ms, id`,
          )
        ).rows,
      }));
      return { json: { data: rows.map(({ id, state, created_at_ms: createdAtMs }) => ({ id, state, created_at: timeJson(integer(createdAtMs)), is_in_use: id === head.macKeyId })) } };
    },
  );

  const rotate = operation(
    {
      id: 'rotateAuditMacKey', action: 'audit_mac_key.rotate', method: 'post', path: '/api/audit/mac-keys/rotate', tag: TAG, access: 'administrator',
      summary: 'Begin to chain the audit log under a new MAC key',
      description: 'It is in use some seconds later. Entries of before stay as they are, and are verified with the keys of before.',
      answers: { 202: { description: 'It has begun', json: z.object({ from_key_id: z.string(), to_key_id: z.string() }) } },
      problems: ['illegal_transition'],
    },
    async ({ principal: { actor } }) => {
      const { from, to } = await rotation.begin(actor);
      return { status: 202, json: { from_key_id: from, to_key_id: to } };
    },
  );
  return [list, rotate];
}
