/** `keyguard administrators`: on the data itself, by the service's own configuration, while the service is stopped. */
import type { Command } from 'commander';
import type { HostAdministration } from '../people/host.ts';
import { COMMAND } from './api.ts';
import { confirm, CommandError, table } from './terminal.ts';

export interface AdministratorCommandOptions {
  readonly show: (value: unknown, text: () => string) => void;
}

interface Place {
  readonly folder?: string;
}

export function addAdministratorCommands(program: Command, { show }: AdministratorCommandOptions): void {
  const administrators = program
    .command('administrators')
    .description('who administers, said on the host while the service is stopped: the way out where two had to agree and one is gone');

  async function onHost<T>({ folder }: Place, work: (host: HostAdministration) => Promise<T>): Promise<T> {
    // Only now: the database and all of its keys are loaded for this.
    const [{ alone, configOf, inWords }, { hostAdministration }] = await Promise.all([import('./offline.ts'), import('../people/host.ts')]);
    return inWords(async () => {
      const config = configOf(folder);
      return alone(config, async ({ sql }) => work(await hostAdministration(sql, config)));
    });
  }

  const command = (name: string, description: string): Command =>
    administrators.command(name).description(description).option('--folder <path>', 'where the service is started, with its .env and its data');

  command('list', 'list who administers').action(async (place: Place) => {
    const rows = await onHost(place, (host) => host.administrators());
    show(rows, () => table(['E-MAIL', 'ID', 'STANDING'], rows.map(({ id, email, isDisabled, intact }) => [email, id, intact ? (isDisabled ? 'disabled' : 'administers') : 'changed in the database!'])));
  });

  command('add', 'make a person an administrator')
    .argument('<email>')
    .action(async (email: string, place: Place) => {
      await onHost(place, (host) => host.make(email));
      show({ email, is_administrator: true }, () => `${email} administers once the service is started. It is in the audit log, by "operator".`);
    });

  command('remove', 'let a person administer no longer, and end their sessions')
    .argument('<email>')
    .option('--yes', 'do not ask')
    .action(async (email: string, { yes = false, ...place }: Place & { yes?: boolean }) => {
      if (!yes && !(await confirm(`Shall ${email} administer no longer?`))) throw new CommandError('Not removed.');
      await onHost(place, (host) => host.unmake(email));
      show({ email, is_administrator: false }, () => `${email} administers no longer. To let that person in no more, start the service, then  ${COMMAND} users disable ${email}`);
    });
}
