/** `keyguard keys rotate` and what belongs to the keys under which the service seals. */
import { resolve } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import type { Command } from 'commander';
import type { RootKeyConfig } from '../config.ts';
import { COMMAND, type Api, type Json } from './api.ts';
import { rotateProviderKey, withReplaceOptions, type ReplaceOptions } from './provider-keys.ts';
import { askSecret, confirm, CommandError, remark, table, when } from './terminal.ts';

const POLL_MS = 500;
const ROTATIONS = '/api/operations/kek-rotations';
const KEKS = '/api/operations/keks';

export interface KeyCommandOptions {
  readonly api: () => Api;
  readonly show: (value: unknown, text: () => string) => void;
  readonly path: (...parts: readonly string[]) => string;
  readonly duration: (given: string) => number;
}

const UUID = /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

const MIN_PASSPHRASE_CHARACTERS = 16;

async function askNewPassphrase(): Promise<string> {
  const passphrase = await askSecret(`The new passphrase, at least ${MIN_PASSPHRASE_CHARACTERS} characters`);
  if ([...passphrase].length < MIN_PASSPHRASE_CHARACTERS) throw new CommandError(`A passphrase has at least ${MIN_PASSPHRASE_CHARACTERS} characters.`);
  if (process.stdin.isTTY && (await askSecret('The same again')) !== passphrase) throw new CommandError('The two passphrases are not the same.');
  return passphrase;
}

function progress(rotation: Json): string {
  const { state, rewrapped, remaining, damaged } = rotation;
  if (state === 'done') return `Done: ${String(rewrapped)} values have moved to ${String(rotation['to_kek_id'])}. ${String(rotation['from_kek_id'])} is disabled.`;
  if (state === 'rewrapping') {
    const left = remaining === null ? '' : `, ${String(remaining)} to go`;
    const stuck = Number(damaged) > 0 ? ` ${String(damaged)} of them do not open: the old key stays in use for them. The log of the service says more.` : '';
    return `${String(rewrapped)} values have moved to the new key${left}.${stuck}`;
  }
  return state === 'distributing' ? 'The new key is made; it takes over when every replica holds it.' : 'The new key is being made.';
}

async function rotateAuditMacKey(server: Api, wait: boolean, show: KeyCommandOptions['show']): Promise<void> {
  const begun = await server.sendSigned('POST', '/api/audit/mac-keys/rotate');
  const to = String(begun['to_key_id']);
  const isPrimary = async (): Promise<boolean> =>
    ((await server.sendSigned('GET', '/api/audit/mac-keys'))['data'] as readonly Json[]).some(({ id, state }) => id === to && state === 'primary');
  if (wait) {
    for (let isDone = await isPrimary(); !isDone; isDone = await isPrimary()) await pause(POLL_MS);
  }
  show(begun, () => (wait ? `${to} has taken over: the next entry is chained under it.` : `${to} is made, and takes over in some seconds. What was chained before is verified with the key of before.`));
}

export function addKeyCommands(keys: Command, { api, show, path, duration }: KeyCommandOptions): void {
  withReplaceOptions(keys.command('rotate').description('give a provider key a new value, or let a new key take over under which values are sealed or the audit log is chained'), duration)
    .argument('<what>', 'the id of a provider key; kek for the key encryption key; audit-mac for the key that chains the audit log')
    .option('--wait', 'of kek and audit-mac: until it is done')
    .action(async (what: string, { wait = false, ...replacing }: ReplaceOptions & { readonly wait?: boolean }) => {
      if (UUID.test(what)) return rotateProviderKey({ api, show, path }, what, replacing);
      if (what !== 'kek' && what !== 'audit-mac') throw new CommandError('Say kek, audit-mac, or the id of a provider key.');
      const server = api();
      if (what === 'audit-mac') return rotateAuditMacKey(server, wait, show);
      let rotation = await server.sendSigned('POST', ROTATIONS);
      for (;;) {
        if (!wait || rotation['state'] === 'done') break;
        if (Number(rotation['damaged']) > 0) throw new CommandError(progress(rotation));
        await pause(POLL_MS);
        rotation = await server.sendSigned('GET', `${ROTATIONS}/${String(rotation['id'])}`);
      }
      show(rotation, () => (rotation['state'] === 'done' ? progress(rotation) : `${progress(rotation)} It goes on in the background:  ${COMMAND} keys rotation`));
    });

  keys
    .command('change-root')
    .description('put all keys under another root key, while the service is stopped; what is sealed stays as it is')
    .option('--to-file <path>', 'the file of the new root key; made where there is none')
    .option('--to-passphrase', 'a passphrase, which is asked for, or read from a pipe')
    .option('--folder <path>', 'where the service is started, with its .env and its data')
    .action(async ({ toFile, toPassphrase = false, folder }: { toFile?: string; toPassphrase?: boolean; folder?: string }) => {
      if ((toFile === undefined) === !toPassphrase) throw new CommandError('Say one: --to-file <path>, or --to-passphrase.');
      // Only now: the database and all of its keys are loaded for this.
      const [{ alone, configOf, inWords }, { changeRoot }] = await Promise.all([import('./offline.ts'), import('../keys/change-root.ts')]);
      await inWords(async () => {
        const config = configOf(folder);
        const next: RootKeyConfig = toFile === undefined ? { kind: 'passphrase', passphrase: await askNewPassphrase() } : { kind: 'file', path: resolve(toFile) };
        const change = await alone(config, ({ sql }) => changeRoot(sql, config.rootKey, next));
        show(change, () =>
          [
            `${change.keys} keys are under the new root key; the old one opens nothing of this database any more.`,
            next.kind === 'file'
              ? `Start every process with  KEYGUARD_ROOT_KEY_FILE=${next.path}  and without KEYGUARD_PASSPHRASE.`
              : 'Start every process with that KEYGUARD_PASSPHRASE, and without KEYGUARD_ROOT_KEY_FILE.',
            'Backups from before still open with the old root key: keep it with them, or destroy both.',
          ].join('\n'),
        );
      });
    });

  keys
    .command('rotation')
    .description('how far the last rotation of the key encryption key has come')
    .action(async () => {
      const { data } = await api().sendSigned('GET', ROTATIONS);
      const rotation = (data as readonly Json[])[0] ?? null;
      show(rotation, () => (rotation === null ? `There was none yet:  ${COMMAND} keys rotate kek` : progress(rotation)));
    });

  keys
    .command('keks')
    .description('the key encryption keys, newest first')
    .action(async () => {
      const { data } = await api().sendSigned('GET', KEKS);
      const rows = data as readonly Json[];
      show(rows, () => table(['ID', 'STATE', 'WRAPS', 'MADE'], rows.map((row) => [String(row['id']), String(row['state']), String(row['wraps']), when(row['created_at'])])));
    });

  keys
    .command('destroy-kek')
    .description('destroy a key encryption key that is disabled, for ever')
    .argument('<id>')
    .option('--yes', 'do not ask')
    .action(async (id: string, { yes = false }: { yes?: boolean }) => {
      if (!yes && !(await confirm(`Destroy ${id}? Only backups from before have its bytes then.`))) throw new CommandError('Not destroyed.');
      const destroyed = await api().sendSigned('POST', `${KEKS}/${encodeURIComponent(id)}/destroy`);
      show(destroyed, () => `${id} is destroyed.`);
      remark('Backups that were made before still hold it: destroy them too, if the key must be gone.');
    });
}
