/**
 * `GET /api/audit/export`: the log as a file. JSON lines hold every byte that a verifier needs and are for who may read all of it; CSV is
 * for people with a spreadsheet, and holds what they may read. Either is read page by page while it leaves, so that memory does not
 * grow with the log, and the right to read is asked for again with every page.
 */
import { Readable } from 'node:stream';
import * as z from 'zod';
import type { AuditRecord } from '@keyguard/core/seams';
import { writeExport } from '@keyguard/example-audit-verifier/export';
import { asJobs, asUser } from '../db/as-user.ts';
import { integer } from '../db/values.ts';
import type { Principal } from '../auth/principal.ts';
import { operation, type Operation } from '../http/operations.ts';
import { HttpProblem } from '../http/problems.ts';
import { readHead } from './checkpoint-store.ts';
import { csvHeading, csvRow } from './csv.ts';
import type { AuditOperationsOptions } from './operations.ts';
import { conditionsOf, entryJson, filterQuery, readsAll, type EntryRow, type Filters } from './reading.ts';
import { RECORD_COLUMNS, recordOf, type RecordRow } from './records.ts';

const PAGE = 500;

const notAllowed = (): HttpProblem =>
  new HttpProblem('forbidden', 'Only who may read the whole log exports it as JSON lines, because less of it cannot be verified. Use format=csv for what you did yourself.');

export function exportOperation({ sql, access, audit }: AuditOperationsOptions): Operation {
  /** The entries from the oldest on, as long as the principal may read what it could read at the beginning. */
  async function* pages<Row extends EntryRow>(columns: 'seq, entry' | typeof RECORD_COLUMNS, asked: Filters, principal: Principal, all: boolean): AsyncGenerator<readonly Row[]> {
    for (let after = -1; ; ) {
      const rows = await asUser(sql, principal.userId, async (tx) => {
        if (all && !(await readsAll(tx, access, principal))) throw notAllowed();
        const { text, params } = conditionsOf(asked, { origin: audit.origin, principal, all });
        const found = await tx.query<Row>(
          `SELECT ${columns} FROM keyguard.secret_audit_logs WHERE ${text} AND seq > $${params.length + 1}::bigint ORDER BY seq LIMIT ${PAGE}`,
          [...params, after],
        );
        return found.rows;
      });
      if (rows.length > 0) yield rows;
      if (rows.length < PAGE) return;
      after = integer(rows.at(-1)!.seq);
    }
  }

  async function* csv(asked: Filters, principal: Principal, all: boolean): AsyncGenerator<string> {
    yield csvHeading();
    for await (const rows of pages('seq, entry', asked, principal, all)) yield rows.map((row) => csvRow(entryJson(row))).join('');
  }

  async function* records(origin: string, size: number, principal: Principal): AsyncGenerator<AuditRecord> {
    // What is appended while this leaves stays out, but what stands beyond the head without having been appended comes along.
    for await (const rows of pages<RecordRow>(RECORD_COLUMNS, { origin }, principal, true)) {
      for (const row of rows) {
        if (integer(row.seq) >= size && (await asJobs(sql, (tx) => readHead(tx, origin))).size > integer(row.seq)) return;
        yield recordOf(row);
      }
    }
  }

  async function* jsonLines(origin: string, principal: Principal): AsyncGenerator<string> {
    const { head, checkpoint } = await asJobs(sql, async (tx) => {
      const newest = await tx.query<{ signed_note: string }>(
        'SELECT signed_note FROM keyguard.audit_checkpoints WHERE origin = $1 ORDER BY tree_size DESC LIMIT 1',
        [origin],
      );
      return { head: await readHead(tx, origin), checkpoint: newest.rows[0]?.signed_note ?? null };
    });
    let waiting = '';
    for await (const line of writeExport({ origin, size: head.size, mac: head.mac, checkpoint }, records(origin, head.size, principal))) {
      waiting += `${line}\n`;
      if (waiting.length < 64 * 1024) continue;
      yield waiting;
      waiting = '';
    }
    yield waiting;
  }

  return operation(
    {
      id: 'exportAuditLog', action: 'audit.export', method: 'get', path: '/api/audit/export', tag: 'Audit', access: 'audit:read',
      summary: 'Export the audit log, oldest first',
      description:
        'JSON lines are what `examples/audit-verifier` verifies: the whole chain, for who may read all of it. An export that breaks off lacks its last ' +
        'line. CSV holds what the caller may read, narrowed as the list is; before whatever a spreadsheet would take for a formula stands an apostrophe, ' +
        'also where it splits cells at semicolons or tabs.',
      query: z.strictObject({ format: z.enum(['jsonl', 'csv']).default('jsonl'), ...filterQuery }),
      answers: { 200: { description: 'The file', types: ['application/jsonl', 'text/csv'] } },
    },
    async ({ query: { format, ...asked }, principal }) => {
      const all = await asUser(sql, principal.userId, (tx) => readsAll(tx, access, principal));
      const origin = asked.origin ?? audit.origin;
      if (format === 'jsonl') {
        if (!all) throw notAllowed();
        if (Object.entries(asked).some(([name, value]) => name !== 'origin' && value !== undefined)) {
          throw new HttpProblem('invalid_request', 'JSON lines are the whole log: a part of it cannot be verified. Leave the filters out, or use format=csv.');
        }
      }
      // Before the first byte leaves: what cannot be put on record is not given out.
      await audit.record({ action: 'audit.export', outcome: 'success', actor: principal.actor, format, all, ...(asked.origin !== undefined && { exported_origin: origin }) });
      const isCsv = format === 'csv';
      const body = Readable.from(isCsv ? csv(asked, principal, all) : jsonLines(origin, principal), { objectMode: false });
      const name = `audit-${new Date().toISOString().slice(0, 10)}.${format}`;
      return {
        stream: { type: isCsv ? 'text/csv; charset=utf-8; header=present' : 'application/jsonl', body },
        headers: { 'content-disposition': `attachment; filename="${name}"` },
      };
    },
  );
}
