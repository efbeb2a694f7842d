/**
 * What proves the audit log to somebody who trusts neither the database nor this service: signed checkpoints, that an entry is in one,
 * and that one continues another. Hashes and signatures tell nothing of entries, so any reader may have them; the bytes of an entry
 * are for who may read it.
 */
import { Readable } from 'node:stream';
import * as z from 'zod';
import { toBase64 } from '@keyguard/core/bytes';
import { verifierKey } from '@keyguard/core/checkpoint';
import { isRejected, UnavailableError } from '@keyguard/core/errors';
import { consistencyProof, inclusionProof, verifyInclusion } from '@keyguard/core/merkle';
import { asJobs, asUser } from '../db/as-user.ts';
import { bytesOf } from '../db/values.ts';
import { operation, type Operation } from '../http/operations.ts';
import { time, timeJson } from '../http/pagination.ts';
import { HttpProblem, notFound } from '../http/problems.ts';
import { listChains } from './chains.ts';
import { rootAt, type SignedCheckpoint } from './checkpoint-store.ts';
import type { AuditOperationsOptions } from './operations.ts';
import { readsAll } from './reading.ts';
import { sha256, tileMemory, tileReader } from './tree.ts';

const TAG = 'Audit';
const RETRY_SECONDS = 60;
const count = z.string().regex(/^(?:0|[1-9][0-9]{0,14})$/, 'must be a whole number').transform(Number);
const base64 = z.string().describe('Base64 with padding.');
const note = z.string().describe('A signed note as C2SP tlog-checkpoint has it.');

const checkpointSchema = z
  .object({ origin: z.string(), size: z.int(), root: base64, created_at: time, note })
  .meta({ id: 'AuditCheckpoint', description: 'What the log said of itself at one moment, signed.' });
const inclusion = z
  .object({ origin: z.string(), seq: z.int(), entry: z.string().describe('The bytes that are hashed, in base64.'), size: z.int(), root: base64, proof: z.array(base64), checkpoint: note })
  .meta({ id: 'AuditInclusionProof', description: 'That an entry is in the log of a checkpoint (RFC 9162, section 2.1.3).' });
const consistency = z
  .object({ origin: z.string(), from: z.int(), to: z.int(), from_root: base64, to_root: base64, proof: z.array(base64), from_checkpoint: note.nullable(), to_checkpoint: note.nullable() })
  .meta({ id: 'AuditConsistencyProof', description: 'That the log continues an older state of itself (RFC 9162, section 2.1.4).' });

function checkpointJson({ origin, size, root, createdAtMs, note: signed }: SignedCheckpoint): object {
  return { origin, size, root: toBase64(root), created_at: timeJson(createdAtMs), note: signed };
}

const pending = (): HttpProblem => new HttpProblem('checkpoint_pending', 'No checkpoint covers that yet: one is signed within a minute of any entry.', { retryAfterSeconds: RETRY_SECONDS });

export function proofOperations({ sql, keys, access, audit, store, checkpoints }: AuditOperationsOptions): readonly Operation[] {
  const { origin } = store;
  // What comes out is held to a root that was signed, so that it does not matter when its parts were read.
  const memory = tileMemory();

  const checkpoint = operation(
    {
      id: 'getAuditCheckpoint', action: 'audit.checkpoint', method: 'get', path: '/api/audit/checkpoint', tag: TAG, access: 'audit:read',
      summary: 'Show the newest checkpoint; as the note alone where text/plain is asked for',
      answers: { 200: { description: 'The checkpoint', json: checkpointSchema, types: ['text/plain'] } },
      problems: ['checkpoint_pending'],
    },
    async ({ request }) => {
      const newest = await store.newest();
      if (newest === null) throw pending();
      if (request.accepts('application/json', 'text/plain') === 'text/plain') return { stream: { type: 'text/plain; charset=utf-8', body: Readable.from([newest.note]) } };
      return { json: checkpointJson(newest) };
    },
  );

  const signNow = operation(
    {
      id: 'signAuditCheckpoint', action: 'audit.checkpoint_sign', method: 'post', path: '/api/audit/checkpoint', tag: TAG, access: 'administrator',
      summary: 'Sign a checkpoint now, over all that is there',
      answers: { 201: { description: 'The checkpoint', json: checkpointSchema } },
    },
    async ({ principal: { actor } }) => {
      await audit.record({ action: 'audit.checkpoint_sign', outcome: 'success', actor });
      await checkpoints.sign();
      return { status: 201, json: checkpointJson((await store.newest())!) };
    },
  );

  const key = operation(
    {
      id: 'getAuditVerifierKey', action: 'audit.verifier_key', method: 'get', path: '/api/audit/verifier-key', tag: TAG, access: 'audit:read',
      summary: 'Show the public key of checkpoints, to be compared with the one that was pinned',
      description: 'A verifier must have this key another way than the checkpoints: note it when the service is set up.',
      answers: {
        200: {
          description: 'The key, and those of the chains before a restore',
          json: z.object({ origin: z.string(), key: z.string(), before: z.array(z.object({ origin: z.string(), key: z.string() })) }),
        },
      },
    },
    async () => {
      const chains = await asJobs(sql, (tx) => listChains(tx, keys));
      const others = chains.filter((chain) => chain.origin !== origin);
      const before = await Promise.all(others.map(async (chain) => ({ origin: chain.origin, key: await verifierKey(chain.origin, keys.checkpointSigner.publicKey) })));
      return { json: { origin, key: store.verifierKey, before } };
    },
  );

  const proof = operation(
    {
      id: 'proveAuditEntry', action: 'audit.prove', method: 'get', path: '/api/audit/{seq}/proof', tag: TAG, access: 'audit:read',
      summary: 'Prove that an entry is in the log of a checkpoint',
      params: z.strictObject({ seq: count }),
      query: z.strictObject({ size: count.optional().describe('Of a checkpoint that was signed. By default the newest.') }),
      answers: { 200: { description: 'The entry, the proof and the checkpoint', json: inclusion } },
      problems: ['not_found', 'checkpoint_pending'],
    },
    async ({ params: { seq }, query: { size }, principal }) => {
      const bytes = await asUser(sql, principal.userId, async (tx) => {
        const all = await readsAll(tx, access, principal);
        const { rows } = await tx.query<{ entry: unknown }>(
          'SELECT entry FROM keyguard.secret_audit_logs WHERE origin = $1 AND seq = $2::bigint AND ($3::boolean OR actor = $4)',
          [origin, seq, all, principal.actor],
        );
        return rows[0] === undefined ? null : bytesOf(rows[0].entry);
      });
      if (bytes === null) throw notFound();
      const signed = size === undefined ? await store.newest() : await store.at(size);
      if (signed === null && size !== undefined) throw new HttpProblem('not_found', 'No checkpoint of that size was signed.');
      if (signed === null || signed.size <= seq) throw pending();
      const hashes = await inclusionProof(seq, signed.size, tileReader(sql, origin, memory), sha256);
      try {
        await verifyInclusion({ bytes, index: seq, size: signed.size, root: signed.root, proof: hashes }, sha256);
      } catch (cause) {
        if (!isRejected(cause)) throw cause;
        memory.forget();
        throw new UnavailableError('audit_tree', 'An audit entry is not the one that was signed for: verify the log.', { cause });
      }
      return {
        json: { origin, seq, entry: toBase64(bytes), size: signed.size, root: toBase64(signed.root), proof: hashes.map(toBase64), checkpoint: signed.note },
      };
    },
  );

  const consistent = operation(
    {
      id: 'proveAuditConsistency', action: 'audit.prove_consistency', method: 'get', path: '/api/audit/consistency', tag: TAG, access: 'audit:read',
      summary: 'Prove that the log continues an older state of itself',
      query: z.strictObject({
        from: count.describe('How many entries the older state has: the size of a checkpoint that you kept.'),
        to: count.optional().describe('How many entries the newer state has. By default as many as the newest checkpoint.'),
      }),
      answers: { 200: { description: 'The proof, and the checkpoints of those sizes where there are any', json: consistency } },
      problems: ['checkpoint_pending'],
    },
    async ({ query: { from, to: asked } }) => {
      const newest = await store.newest();
      if (newest === null) throw pending();
      const to = asked ?? newest.size;
      if (from > to) throw new HttpProblem('invalid_request', 'from must not be more than to.');
      if (to > newest.size) throw pending();
      const hashes = await consistencyProof(from, to, tileReader(sql, origin), sha256);
      const [fromRoot, toRoot] = [await rootAt(sql, origin, from), await rootAt(sql, origin, to)];
      return {
        json: {
          origin, from, to, from_root: toBase64(fromRoot), to_root: toBase64(toRoot), proof: hashes.map(toBase64),
          from_checkpoint: (await store.at(from))?.note ?? null, to_checkpoint: (await store.at(to))?.note ?? null,
        },
      };
    },
  );

  return [checkpoint, signNow, key, proof, consistent];
}
