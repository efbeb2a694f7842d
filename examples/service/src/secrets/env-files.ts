/** Secrets in and out as `.env` files: all that is in a file or nothing of it, and every value that leaves on record before it does. */
import { UnavailableError } from '@keyguard/core/errors';
import type { Page, SqlClient, SqlTransaction } from '@keyguard/storage-node/postgres';
import type { Principal } from '../auth/principal.ts';
import { asUser } from '../db/as-user.ts';
import { HttpProblem } from '../http/problems.ts';
import { isVariableName, readEnv, writeVariable, type Variable } from './dotenv.ts';
import { findSecrets } from './listing.ts';
import type { HeldSecret, Secret } from './rows.ts';
import type { NextVersion, Revealed, SealedVersion, SecretStore } from './store.ts';
import { MAX_VALUE_BYTES } from './types.ts';

export const MAX_VARIABLES = 200;
const MAX_EXPORTED = 500;
const PAGE = 200;
const MAX_TRIES = 5;
// Opening is work of this process's one thread: others get their turn in between.
const OPENED_AT_ONCE = 8;

export type Outcome = 'created' | 'updated' | 'unchanged' | 'invalid';

/** What happened, or would happen, to one variable; never its value. */
export interface ImportedVariable {
  readonly line: number;
  readonly name: string | null;
  readonly outcome: Outcome;
  readonly secretId: string | null;
  readonly problem: string | null;
}

export interface ImportReport {
  /** Whether anything was written. */
  readonly applied: boolean;
  readonly variables: readonly ImportedVariable[];
}

export interface ImportOptions {
  /** Untrusted. */
  readonly text: string;
  readonly projectId: string | null;
  readonly tags: readonly string[];
  readonly dryRun: boolean;
}

export type ExportFormat = 'env' | 'json';

export interface ExportOptions {
  /** `null` without an environment: what is in no project. */
  readonly projectId: string | null;
  /** All projects of this environment; with a project: it must be of this environment. */
  readonly environment: string | null;
  readonly format: ExportFormat;
}

/** One step of an import, sealed before its transaction. */
interface Step {
  readonly variable: Variable;
  readonly outcome: Exclude<Outcome, 'invalid'>;
  /** `null` for what is new. */
  readonly before: Secret | null;
  readonly made: SealedVersion | null;
  /** For what is there already. */
  readonly next: NextVersion | null;
}

export interface EnvFiles {
  /** @throws HttpProblem `invalid_request` for a file with an invalid line, unless it is a dry run; `name_taken` for a name whose secret the caller may not see */
  importFile(principal: Principal, options: ImportOptions): Promise<ImportReport>;
  /** @throws HttpProblem `forbidden` where one of them may be seen and not revealed, `not_exportable` for what has no such form */
  exportFile(principal: Principal, options: ExportOptions): Promise<{ readonly type: string; readonly text: string; readonly count: number }>;
}

export interface EnvFilesOptions {
  readonly sql: SqlClient;
  readonly store: SecretStore;
  /** Whether nothing beside permissions keeps the caller from revealing at this moment, such as a second factor that was proven too long ago. */
  readonly mayReveal: (principal: Principal) => boolean;
}

export function envFiles({ sql, store, mayReveal }: EnvFilesOptions): EnvFiles {
  const { rows, parts } = store;

  /** Everything by that filter that the caller may know of. */
  async function all(tx: SqlTransaction, principal: Principal, projectId: string | null): Promise<readonly HeldSecret[]> {
    const found: HeldSecret[] = [];
    let cursor: string | null = null;
    do {
      const page: Page<HeldSecret> = await findSecrets(tx, rows, principal, projectId === null ? {} : { projectId }, { limit: PAGE, cursor });
      // Without a project: what is the caller's own and in none.
      found.push(...page.items.filter(({ secret }) => secret.projectId === projectId && (projectId !== null || secret.ownerId === principal.userId)));
      cursor = page.nextCursor;
    } while (cursor !== null);
    return found;
  }

  /** What is stored, to compare it; `null` for who may not reveal it now. To be told that a value is the same is to have read it. */
  async function readable(principal: Principal, { secret, permissions, intact }: HeldSecret): Promise<Revealed | null> {
    if (!permissions.has('secrets:reveal') || !intact || !mayReveal(principal)) return null;
    if (secret.expiresAtMs !== null && secret.ownerId !== principal.userId) return null;
    return parts.openFor(principal, secret.id, 'secrets:reveal', { version: null, allowExpired: true });
  }

  function invalid({ line, name }: Variable, problem: string): ImportedVariable {
    return { line, name, outcome: 'invalid', secretId: null, problem };
  }

  async function plan(principal: Principal, variables: readonly Variable[], { projectId, tags, dryRun }: ImportOptions): Promise<{ readonly steps: readonly Step[]; readonly wrong: readonly ImportedVariable[] }> {
    const held = await asUser(sql, principal.userId, async (tx) => {
      await parts.demandProject(tx, principal, projectId);
      return all(tx, principal, projectId);
    });
    const steps: Step[] = [];
    const wrong: ImportedVariable[] = [];
    const read: Revealed[] = [];
    for (const variable of variables) {
      if (Buffer.byteLength(variable.value) > MAX_VALUE_BYTES) {
        wrong.push(invalid(variable, `the value has more than ${MAX_VALUE_BYTES} bytes`));
        continue;
      }
      const named = held.filter(({ secret }) => secret.name === variable.name);
      const target = named.find(({ secret }) => secret.ownerId === principal.userId) ?? named[0];
      if (target === undefined) {
        const secret = { name: variable.name, type: 'env', value: variable.value, tags, projectId, expiresAtMs: undefined } as const;
        steps.push({ variable, outcome: 'created', before: null, made: dryRun ? null : await parts.sealNew(principal, secret), next: null });
      } else if (named.length > 1 && target.secret.ownerId !== principal.userId) wrong.push(invalid(variable, 'several secrets of others have this name'));
      else if (!target.permissions.has('secrets:update')) wrong.push(invalid(variable, 'a secret of this name is there, and you may not change it'));
      else if (!target.intact) wrong.push(invalid(variable, 'the secret of this name was changed in the database'));
      else {
        const there = await readable(principal, target);
        if (there !== null) read.push(there);
        if (there?.value === variable.value) {
          steps.push({ variable, outcome: 'unchanged', before: target.secret, made: null, next: null });
          continue;
        }
        const next = { reason: 'imported', expiresAtMs: undefined };
        steps.push({ variable, outcome: 'updated', before: target.secret, made: null, next: dryRun ? null : await parts.sealNext(target.secret, variable.value, next) });
      }
    }
    // Before anybody is told which of them are the same.
    await parts.record(read.map((one) => parts.revealEntry(principal, one, { via: 'env_import' })));
    return { steps, wrong };
  }

  function report(steps: readonly Step[], wrong: readonly ImportedVariable[], applied: boolean): ImportReport {
    const done = steps.map(({ variable: { line, name }, outcome, before, made }) => ({
      line, name, outcome, secretId: before?.id ?? (applied ? made!.secret.id : null), problem: null,
    }));
    return { applied, variables: [...done, ...wrong].toSorted((a, b) => a.line - b.line) };
  }

  /** Why nothing was written, where one of them has changed since it was looked at, or a name is taken; `null` where all were. */
  async function apply(principal: Principal, steps: readonly Step[], projectId: string | null): Promise<'changed' | 'name_taken' | null> {
    class Changed extends Error {}
    try {
      await asUser(sql, principal.userId, async (tx) => {
        await parts.demandProject(tx, principal, projectId);
        const created = steps.filter(({ made: sealed }) => sealed !== null).length;
        if (created > 0) await parts.demandRoom(tx, principal, created);
        const updates = steps.filter(({ outcome }) => outcome === 'updated').toSorted((a, b) => (a.before!.id < b.before!.id ? -1 : 1));
        // All locks before the audit log's: who takes them in another order waits for who waits for them.
        const made: SealedVersion[] = [];
        for (const { before, next } of updates) {
          const { secret } = await rows.lockSecret(tx, principal, before!.id, 'secrets:update');
          parts.demandCurrentOrOwn(principal, secret);
          const version = secret.revision === before!.revision ? next!(secret) : null;
          if (version === null) throw new Changed();
          made.push(version);
        }
        const via = { via: 'env_file' };
        for (const version of made) await parts.append(tx, principal, version, 'secret.add_version', via);
        for (const { made: sealed } of steps) if (sealed !== null) await parts.insert(tx, principal, sealed, via);
      });
      return null;
    } catch (error) {
      // A name that was taken meanwhile is looked at again, too.
      if (error instanceof HttpProblem && error.code === 'name_taken') return error.code;
      if (error instanceof Changed || (error instanceof HttpProblem && error.code === 'not_found')) return 'changed';
      throw error;
    }
  }

  async function projectsOf(tx: SqlTransaction, principal: Principal, { projectId, environment }: ExportOptions): Promise<readonly (string | null)[]> {
    if (environment === null) return [projectId];
    const { rows: found } = await tx.query<{ id: string }>(
      'SELECT id FROM keyguard.api_key_projects WHERE environment = $1 AND archived_at_ms IS NULL AND ($2::text IS NULL OR id = $2) ORDER BY id',
      [environment, projectId],
    );
    if (found.length === 0) throw new HttpProblem('not_found', `There is no project of the environment "${environment}" to export, or none that you may see.`);
    return found.map(({ id }) => id);
  }

  return {
    async importFile(principal, options) {
      const { variables, invalid: unreadable } = readEnv(options.text);
      const unread = unreadable.map(({ line, name, problem }): ImportedVariable => ({ line, name, outcome: 'invalid', secretId: null, problem }));
      if (variables.length > MAX_VARIABLES) throw new HttpProblem('invalid_request', `text: it has more than ${MAX_VARIABLES} variables.`);
      let hindrance: 'changed' | 'name_taken' | null = null;
      for (let tries = 0; tries < MAX_TRIES; tries += 1) {
        const { steps, wrong } = await plan(principal, variables, unread.length > 0 ? { ...options, dryRun: true } : options);
        const invalids = [...unread, ...wrong];
        if (options.dryRun) return report(steps, invalids, false);
        if (invalids.length > 0) {
          const said = invalids.slice(0, 10).map(({ line, name, problem }) => `line ${line}${name === null ? '' : ` (${name})`}: ${problem}`);
          throw new HttpProblem('invalid_request', `Nothing was imported. ${said.join('; ')}${invalids.length > 10 ? '; and more' : ''}`);
        }
        hindrance = await apply(principal, steps, options.projectId);
        if (hindrance === null) return report(steps, [], true);
      }
      // Each time, and never seen: whoever asks may make secrets and not read which there are.
      if (hindrance === 'name_taken') throw new HttpProblem('name_taken', 'Secrets of some of these names are there already, and you may not see them: nothing was imported.');
      throw new UnavailableError('secrets', 'The secrets of these names are being changed all the time: nothing was imported.', { code: 'overloaded' });
    },

    async exportFile(principal, options) {
      const found = await asUser(sql, principal.userId, async (tx) => {
        const lists: (readonly HeldSecret[])[] = [];
        for (const projectId of await projectsOf(tx, principal, options)) lists.push(await all(tx, principal, projectId));
        return lists.flat();
      });
      const named = options.format === 'json' ? found : found.filter(({ secret }) => isVariableName(secret.name));
      if (named.length > MAX_EXPORTED) throw new HttpProblem('not_exportable', `There are more than ${MAX_EXPORTED} secrets: export one project at a time.`);
      const sorted = named.toSorted((a, b) => (a.secret.name < b.secret.name ? -1 : 1));
      for (const [i, { secret }] of sorted.entries()) {
        if (sorted[i - 1]?.secret.name === secret.name) throw new HttpProblem('not_exportable', `Two secrets are called ${secret.name}: a file has room for one.`);
      }
      const closed = sorted.find(({ permissions }) => !permissions.has('secrets:reveal'));
      if (closed !== undefined) throw new HttpProblem('forbidden', `You may not reveal ${closed.secret.name}, so nothing was exported: a file that lacks something looks like one that does not.`);

      const values: Revealed[] = [];
      for (let at = 0; at < sorted.length; at += OPENED_AT_ONCE) {
        const some = sorted.slice(at, at + OPENED_AT_ONCE);
        values.push(...(await Promise.all(some.map(({ secret }) => parts.openFor(principal, secret.id, 'secrets:reveal', { version: null, allowExpired: false })))));
      }
      const text = options.format === 'json' ? `${JSON.stringify(Object.fromEntries(values.map(({ secret, value }) => [secret.name, value])))}\n` : envText(values);
      await parts.record(values.map((value) => parts.revealEntry(principal, value, { via: 'env_file' })));
      return { type: options.format === 'json' ? 'application/json' : 'text/plain; charset=utf-8', text, count: values.length };
    },
  };
}

function envText(values: readonly Revealed[]): string {
  const lines = values.map(({ secret, value }) => {
    const line = writeVariable(secret.name, value);
    if (line === null) {
      throw new HttpProblem('not_exportable', `The value of ${secret.name} has no form in a .env file that every program reads alike (a carriage return, or every kind of quotes): export as JSON.`);
    }
    return `${line}\n`;
  });
  return lines.join('');
}
