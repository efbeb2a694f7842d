/** `keyguard budgets`: what devices and projects may use in a day or a month. */
import { InvalidArgumentError, type Command } from 'commander';
import type { Api, Json } from './api.ts';
import { table, when } from './terminal.ts';

export interface BudgetCommandOptions {
  readonly api: () => Api;
  readonly show: (value: unknown, text: () => string) => void;
  readonly path: (...parts: readonly string[]) => string;
  readonly wholeNumber: (given: string) => number;
}

const MICROS = 1_000_000;

function collectionOf(given: string): string {
  if (given !== 'device' && given !== 'project') throw new InvalidArgumentError('say device or project');
  return `${given}s`;
}

function micros(given: string): number {
  const value = /^[0-9]{1,9}(?:\.[0-9]{1,6})?$/.test(given) ? Math.round(Number(given) * MICROS) : 0;
  if (value === 0) throw new InvalidArgumentError('must be an amount of dollars such as 2.50');
  return value;
}

const dollars = (value: unknown): string => `$${(Number(value) / MICROS).toFixed(2)}`;

function rowOf(what: string, used: unknown, most: unknown, shown: (value: unknown) => string): string[] {
  return [what, shown(used), most === null ? 'any' : shown(most)];
}

function described({ budget, current }: Json): string {
  if (budget === null || current === null) return 'There is no budget: any amount may be used.';
  const [limits, used] = [budget as Json, current as Json];
  const lines = table(
    ['', 'USED', 'OF'],
    [
      rowOf('requests', used['requests'], limits['max_requests'], String),
      rowOf('tokens', used['tokens'], limits['max_tokens'], String),
      rowOf('cost', used['cost_micros'], limits['max_cost_micros'], dollars),
    ],
  );
  return `${lines}\nFor this ${String(limits['period'])}, which ends ${when(used['ends_at'])}. Running calls are in it with what they are expected to use.`;
}

export function addBudgetCommands(program: Command, { api, show, path, wholeNumber }: BudgetCommandOptions): void {
  const budgets = program.command('budgets').description('what devices and projects may use in a day or a month');
  const about = (name: string, description: string): Command =>
    budgets.command(name).description(description).argument('<device|project>', 'whose', collectionOf).argument('<id>', 'its id; of the first project: default');

  about('show', 'show a budget, and what was used of it').action(async (collection: string, id: string) => {
    const state = await api().sendSigned('GET', path(collection, id, 'budget'));
    show(state, () => described(state));
  });

  about('set', 'set a budget; what is not named may be used in any amount')
    .requiredOption('--period <day|month>', 'of UTC')
    .option('--requests <count>', 'calls that are sent to a provider', wholeNumber)
    .option('--tokens <count>', 'input and output', wholeNumber)
    .option('--dollars <amount>', 'by the list of prices', micros)
    .action(async (collection: string, id: string, given: { period: string; requests?: number; tokens?: number; dollars?: number }) => {
      const { period, requests = null, tokens = null, dollars: cost = null } = given;
      const state = await api().sendSigned('PUT', path(collection, id, 'budget'), { period, max_requests: requests, max_tokens: tokens, max_cost_micros: cost });
      show(state, () => described(state));
    });

  about('end', 'let any amount be used again').action(async (collection: string, id: string) => {
    await api().sendSigned('DELETE', path(collection, id, 'budget'));
    show({ ended: true }, () => 'There is no budget any more.');
  });
}
