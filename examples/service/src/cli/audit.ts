/** `keyguard audit`: the log, what proves it, and whether it is what was signed for. */
import { once } from 'node:events';
import { Option, type Command } from 'commander';
import type { Api, Json } from './api.ts';
import { print, remark, table, when } from './terminal.ts';

export interface AuditCommandsOptions {
  readonly api: () => Api;
  readonly show: (value: unknown, text: () => string) => void;
  readonly text: (value: unknown) => string | null;
  readonly wholeNumber: (given: string) => number;
}

const SUBJECTS = ['secret', 'api-key', 'device', 'user', 'ip', 'session', 'request'] as const;

interface Filters {
  readonly actor?: string;
  readonly action?: string;
  readonly resource?: string;
  readonly device?: string;
  readonly outcome?: string;
  readonly ip?: string;
  readonly request?: string;
  readonly from?: string;
  readonly to?: string;
}

const withFilters = (command: Command): Command =>
  command
    .option('--actor <name>', 'who acted: user:…, device:…')
    .option('--action <name>', 'an action, or how its name begins')
    .option('--resource <name>', 'to what it was done: secret:…')
    .option('--device <id>', 'of one device')
    .addOption(new Option('--outcome <outcome>', 'how it ended').choices(['success', 'refused', 'failed']))
    .option('--ip <address>', 'from where')
    .option('--request <id>', 'of one request')
    .option('--from <time>', 'not before this time, as 2026-01-31T00:00:00Z')
    .option('--to <time>', 'before this time');

function queryOf({ request, ...rest }: Filters): URLSearchParams {
  const given = Object.entries({ ...rest, request_id: request }).filter((each): each is [string, string] => each[1] !== undefined);
  return new URLSearchParams(given);
}

/** One word on each finding, as the verifier has it. */
function verdict(report: Json): string {
  const findings = report['findings'] as readonly Json[];
  const head = {
    intact: 'The log is intact.',
    unproven: 'Nothing is wrong with the log, and no checkpoint vouches for it yet.',
    attacked: 'This is not the log that was signed for.',
  }[String(report['verdict'])]!;
  const macs = { right: 'All MACs are right.', wrong: 'MACs are wrong.', 'not checked': 'MACs were not checked: not all of the keys are there.' }[String(report['macs'])]!;
  const lines = [head, '', `${String(report['records'])} entries; the first ${String(report['proven_size'])} are proven by a checkpoint. ${macs}`];
  for (const { attack, from, to, because } of findings) lines.push('', `${String(attack)}${from === null ? '' : `, entries ${String(from)} to ${Number(to) - 1}`}`, `  ${String(because)}`);
  return lines.join('\n');
}

export function addAuditCommands(program: Command, { api, show, text, wholeNumber }: AuditCommandsOptions): void {
  const rowsOf = (rows: readonly Json[]): string =>
    table(
      ['SEQ', 'TIME', 'ACTION', 'OUTCOME', 'ACTOR', 'RESOURCE', 'DETAIL'],
      rows.map((row) => [text(row['seq']), when(row['ts']), text(row['action']), text(row['outcome']), text(row['actor']), text(row['resource']), text(row['code'])]),
    );

  const audit = program.command('audit').description('the audit log, what proves it, and whether it is what was signed for');

  withFilters(audit.command('list', { isDefault: true }).description('the audit log, newest first'))
    .option('--limit <count>', 'at most so many', wholeNumber, 50)
    .action(async ({ limit, ...filters }: Filters & { limit: number }) => {
      const query = queryOf(filters);
      const rows = await api().list(`/api/audit${query.size === 0 ? '' : `?${query}`}`, limit);
      show(rows, () => rowsOf(rows));
    });

  const timeline = audit.command('timeline').description('everything about one thing, oldest first').option('--limit <count>', 'at most so many', wholeNumber, 200);
  for (const subject of SUBJECTS) timeline.option(`--${subject} <id>`, `about this ${subject.replace('-', ' ')}`);
  timeline.action(async ({ limit, apiKey, ...given }: { limit: number; apiKey?: string } & Record<string, string>) => {
    const query = new URLSearchParams({ ...given, ...(apiKey !== undefined && { api_key: apiKey }) });
    const rows = await api().list(`/api/audit/timeline?${query}`, limit);
    show(rows, () => rowsOf(rows));
  });

  withFilters(audit.command('export').description('the log as a file, to the output'))
    .addOption(new Option('--format <format>', 'jsonl, all of it, to be verified elsewhere; or csv').choices(['jsonl', 'csv']).default('jsonl'))
    .action(async ({ format, ...filters }: Filters & { format: string }) => {
      const query = queryOf(filters);
      query.set('format', format);
      for await (const chunk of await api().streamSigned(`/api/audit/export?${query}`)) if (!process.stdout.write(chunk)) await once(process.stdout, 'drain');
    });

  audit
    .command('checkpoint')
    .description('the newest signed checkpoint, to be kept elsewhere')
    .option('--now', 'sign one first, over all that is there')
    .action(async ({ now = false }: { now?: boolean }) => {
      const checkpoint = await api().sendSigned(now ? 'POST' : 'GET', '/api/audit/checkpoint');
      show(checkpoint, () => String(checkpoint['note']).trimEnd());
    });

  audit
    .command('verifier-key')
    .description('the public key of checkpoints, to be noted when the service is set up')
    .action(async () => {
      const answer = await api().sendSigned('GET', '/api/audit/verifier-key');
      show(answer, () => String(answer['key']));
    });

  audit
    .command('proof')
    .description('the proof that an entry is in the log of the newest checkpoint, as JSON')
    .argument('<seq>', 'the number of the entry', wholeNumber)
    .action(async (seq: number) => {
      print(JSON.stringify(await api().sendSigned('GET', `/api/audit/${seq}/proof`), null, 2));
    });

  audit
    .command('verify')
    .description('go through the whole log with the MAC keys and the checkpoints outside, and name what was done to it')
    .option('--offline [folder]', 'without the service, which must not run: with the configuration of this folder')
    .action(async ({ offline }: { offline?: string | true }) => {
      const report = offline === undefined ? await api().sendSigned('POST', '/api/audit/verify') : await verifyOffline(offline === true ? undefined : offline);
      show(report, () => verdict(report));
      if (report['verdict'] === 'attacked') process.exitCode = 1;
    });
}

async function verifyOffline(folder: string | undefined): Promise<Json> {
  // Only now: the database and its keys are loaded for this.
  const [{ alone, configOf, inWords }, { verifyDatabase }, { keptCheckpoints }] = await Promise.all([import('./offline.ts'), import('../audit/offline.ts'), import('../audit/kept.ts')]);
  return inWords(async () => {
    const config = configOf(folder);
    const isKept = (await keptCheckpoints(config.checkpointDir).newest()) !== null;
    remark(isKept ? `Verifying with the checkpoints in ${config.checkpointDir}.` : `There are no checkpoints in ${config.checkpointDir} (KEYGUARD_CHECKPOINT_DIR): the database is compared with itself alone.`);
    const { verdict: found, origin, records, provenSize, macs, findings } = await alone(config, ({ sql }) => verifyDatabase(sql, config));
    return {
      verdict: found, origin, records, proven_size: provenSize, macs,
      findings: findings.map(({ attack, range, because }) => ({ attack, from: range?.from ?? null, to: range?.to ?? null, because })),
    };
  });
}
