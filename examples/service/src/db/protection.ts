/**
 * Whether what protects the rows is in the database as the migrations make it: policies, triggers, functions, grants, constraints. A
 * start that finds another catalog refuses. What it is to be stands in a file beside the migrations, and never in the database: whoever
 * can change a policy there could change what is expected of it too.
 *
 * Looks at the schemas of this service alone, and writes nothing. What it cannot see: what a superuser does outside of these schemas.
 */
import { readFile } from 'node:fs/promises';
import { UsageError } from '@keyguard/core/errors';
import type { SqlClient } from '@keyguard/storage-node/postgres';
import { SCHEMAS } from './migrate.ts';
import { PROTECTION } from './protection-query.ts';

export const EXPECTED_PROTECTION: URL = new URL('../../migrations/expected-protection.txt', import.meta.url);

const HEADING = `# What protects the rows, as an empty database has it once it is migrated. The start of the service compares.
# Made by: KEYGUARD_WRITE_PROTECTION=1 pnpm exec vitest run --project node examples/service/test/protection.test.ts
`;
const SEPARATOR = ' = ';
const LOGIN = 'a login';
const SHOWN_FAULTS = 20;
const SHOWN_CHARACTERS = 400;
/** The major versions that say the same thing in the same words. */
const CHECKED = { from: 15, to: 18 } as const;

interface Row {
  readonly name: string;
  readonly value: string;
  /** Whose grant it is, where it is no role of ours. */
  readonly login: string | null;
}

async function readProtection(sql: SqlClient): Promise<readonly Row[]> {
  return sql.transaction(async (tx) => {
    // PostgreSQL leaves out what is on the path where it writes an expression, and the path is the login's.
    await tx.query('SET LOCAL search_path = pg_catalog, pg_temp');
    const { rows } = await tx.query<Row>(PROTECTION, [SCHEMAS]);
    // It breaks lines where it finds them long.
    return rows.map((row) => ({ ...row, value: row.value.replaceAll(/\s*\n\s*/g, ' ') }));
  });
}

/** The text of {@link EXPECTED_PROTECTION} for a database like this one. */
export async function protectionText(sql: SqlClient): Promise<string> {
  const lines = (await readProtection(sql)).map(({ name, value, login }) => `${login === null ? name : `${name}${LOGIN}`}${SEPARATOR}${value}\n`);
  return HEADING + [...new Set(lines)].toSorted().join('');
}

/** What `text` expects, by name. */
function expectations(text: string): ReadonlyMap<string, string> {
  const lines = text
    .replaceAll('\r\n', '\n')
    .split('\n')
    .filter((line) => line !== '' && !line.startsWith('#'));
  return new Map(
    lines.map((line) => {
      const at = line.indexOf(SEPARATOR);
      return [line.slice(0, at), line.slice(at + SEPARATOR.length)];
    }),
  );
}

const short = (text: string): string => (text.length > SHOWN_CHARACTERS ? `${text.slice(0, SHOWN_CHARACTERS)}…` : text);

function differences(expected: ReadonlyMap<string, string>, found: readonly Row[]): readonly string[] {
  const faults: string[] = [];
  const seen = new Set<string>();
  for (const { name, value, login } of found) {
    // Logins have names of their own. What every one of them may be given is expected of none.
    const wanted = expected.get(login === null ? name : `${name}${LOGIN}`);
    seen.add(name);
    if (value === wanted) continue;
    const what = `${name}${login ?? ''}`;
    faults.push(
      wanted === undefined
        ? `${what} is there, and no migration makes it: ${short(value)}`
        : `${what} is not what the migrations make: it is ${short(value)}, and should be ${short(wanted)}`,
    );
  }
  for (const [name, value] of expected) {
    if (!seen.has(name) && !name.endsWith(` ${LOGIN}`)) faults.push(`${name} is missing: it should be ${short(value)}`);
  }
  return faults;
}

/**
 * To be called at every start, once the database is migrated, on the connection that will serve.
 * @throws UsageError `invalid_option` that names each object and its difference
 */
export async function assertProtected(sql: SqlClient): Promise<void> {
  const [text, found] = await Promise.all([readFile(EXPECTED_PROTECTION, 'utf8'), readProtection(sql)]);
  const faults = differences(expectations(text), found);
  if (faults.length === 0) return;
  const shown = faults.slice(0, SHOWN_FAULTS);
  if (faults.length > shown.length) shown.push(`and ${faults.length - shown.length} more`);
  const { rows } = await sql.query<{ version: string }>(`SELECT current_setting('server_version_num') AS version`);
  const major = Math.floor(Number(rows[0]!.version) / 10_000);
  const isChecked = major >= CHECKED.from && major <= CHECKED.to;
  const doubt = isChecked
    ? ''
    : `\nThis is PostgreSQL ${major}, and this program was tried with ${CHECKED.from} to ${CHECKED.to}: it may only be said in other words.`;
  const help = '\nNothing is served meanwhile. How to mend it, and what to look for first, is in docs/service/operations.md.';
  throw new UsageError('invalid_option', `What protects the rows was changed in the database:\n- ${shown.join('\n- ')}${doubt}${help}`);
}
