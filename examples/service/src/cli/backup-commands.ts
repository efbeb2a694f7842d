/** `keyguard backup` and `keyguard restore`: on the data itself, by the service's own configuration. */
import { existsSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import type { Command } from 'commander';
import type { Config } from '../config.ts';
import { CommandError } from './terminal.ts';

// Not KEYGUARD_…: the service has no use for a login that sees everything, and must not be given one.
const LOGIN = 'BACKUP_DATABASE_URL';

function allSeeingUrl(config: Config): string {
  const url = process.env[LOGIN];
  if (url === undefined || url === '') {
    throw new CommandError(`Set ${LOGIN} to a login that is a superuser in the database of DATABASE_URL: row-level security hides rows from all others, and a backup without them would be none.`);
  }
  if (config.database.kind === 'postgres' && new URL(url).pathname !== new URL(config.database.url).pathname) {
    throw new CommandError(`${LOGIN} and DATABASE_URL name two databases.`);
  }
  return url;
}

export interface BackupCommandOptions {
  readonly show: (value: unknown, text: () => string) => void;
}

export function addBackupCommands(program: Command, { show }: BackupCommandOptions): void {
  program
    .command('backup')
    .description('write all data to a file; on the embedded database, while the service is stopped')
    .requiredOption('--to <file>', 'a file that is not there yet')
    .option('--folder <path>', 'where the service is started, with its .env and its data')
    .action(async ({ to, folder }: { to: string; folder?: string }) => {
      const [{ alone, configOf, inWords }, { dump }, { writeBackup }, { openPostgresOwner }] = await Promise.all([
        import('./offline.ts'), import('../backup/dump.ts'), import('../backup/file.ts'), import('../db/connect.ts'),
      ]);
      await inWords(async () => {
        const config = configOf(folder);
        const path = resolve(to);
        const take = (lines: Parameters<typeof writeBackup>[1]): Promise<void> => writeBackup(path, lines);
        let manifest;
        if (config.database.kind === 'embedded') manifest = await alone(config, ({ sql }) => dump(sql, take));
        else {
          const database = openPostgresOwner(allSeeingUrl(config), () => {});
          manifest = await dump(database.sql, take).finally(() => database.close());
        }
        show(manifest, () =>
          [
            `All data is in ${path}.`,
            'Stored values in it are sealed. Names, addresses, the audit log and the hashes of passwords are not: keep it like the database itself.',
            `The root key is not in it: without that of now (${manifest.root_id}) nothing of it opens. Keep a copy of it elsewhere.`,
          ].join('\n'),
        );
      });
    });

  program
    .command('restore')
    .description('put a backup into an empty database, while the service is stopped')
    .requiredOption('--from <file>', 'what backup has written')
    .option('--folder <path>', 'where the service is started, with its .env and its data')
    .action(async ({ from, folder }: { from: string; folder?: string }) => {
      const [{ configOf, inWords }, { restore }, { openEmbedded, openPostgresOwner }, { claimFolder }, { withRootAlone }] = await Promise.all([
        import('./offline.ts'), import('../backup/restore.ts'), import('../db/connect.ts'), import('../db/folder-lock.ts'), import('../db/root-lock.ts'),
      ]);
      await inWords(async () => {
        const config = configOf(folder);
        const path = resolve(from);
        if (!existsSync(path)) throw new CommandError(`There is no ${path}.`);
        let manifest;
        if (config.database.kind === 'embedded') {
          const database = join(config.dataDir, 'database');
          if (existsSync(database)) throw new CommandError(`There is a database in ${config.dataDir} already: a backup is put into an empty one only. Nothing was changed.`);
          const lock = await claimFolder(config.dataDir, () => process.exit(1));
          try {
            const opened = await openEmbedded(config.dataDir);
            try {
              manifest = await restore({ sql: opened.sql, path, rootKey: config.rootKey });
            } finally {
              await opened.close();
            }
          } catch (error) {
            await rm(database, { recursive: true, force: true });
            throw error;
          } finally {
            lock.release();
          }
        } else {
          const url = allSeeingUrl(config);
          manifest = await withRootAlone(url, async () => {
            const database = openPostgresOwner(url, () => {});
            return restore({ sql: database.sql, path, rootKey: config.rootKey }).finally(() => database.close());
          });
        }
        show(manifest, () =>
          [
            `The data of ${manifest.made_at} is restored: checksums, keys and the whole audit log were verified.`,
            ...(config.database.kind === 'postgres' ? ['Start once with DATABASE_OWNER_URL set, so that the login of DATABASE_URL gets its roles.'] : []),
            'If more had been signed for since then, the start says so and asks you to answer for it.',
          ].join('\n'),
        );
      });
    });
}
