/** Runs the table: every operation, as every principal. */
import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ROWS, type Call } from './rows.ts';
import { PRINCIPALS, type Mode, type Who } from './stage.ts';
import { makeWorld, type World } from './world.ts';

interface Operation {
  readonly method: string;
  readonly path: string;
}

interface Exchange {
  readonly who: Who;
  readonly status: number;
  /** Everything that was answered, headers as well. */
  readonly text: string;
  /** The body without what differs by chance. */
  readonly body: string;
}

async function operationsOf({ stage }: World): Promise<ReadonlyMap<string, Operation>> {
  const { json } = await stage.call('GET', '/api/openapi.json');
  const found = new Map<string, Operation>();
  for (const [path, methods] of Object.entries(json.paths as Record<string, Record<string, { operationId: string; 'x-plane'?: string }>>)) {
    for (const [method, { operationId, 'x-plane': plane }] of Object.entries(methods)) if (plane === undefined) found.set(operationId, { method: method.toUpperCase(), path });
  }
  return found;
}

async function ask(world: World, { method, path }: Operation, { params = {}, query = '', body, headers = {} }: Call, who: Who): Promise<Exchange & { readonly leaks: string[] }> {
  const filled = path.replaceAll(/\{([a-z_]+)\}/g, (_, name: string) => encodeURIComponent(params[name] ?? ''));
  const token = world.tokenOf(who);
  const answer = await world.stage.call(method, filled + query, { headers, ...(token !== undefined && { token }), ...(body !== undefined && { body }) });
  const text = [answer.text, ...[...answer.headers].map(([name, value]) => `${name}: ${value}`)].join('\n');
  const asked = `${decodeURIComponent(filled)} ${query} ${JSON.stringify(body ?? {})}`;
  // Whoever sends a text knows it, and may find it again in what the audit log says of them.
  for (const canary of world.canaries) if (asked.includes(canary.text)) canary.knownTo.add(who);
  const leaks = world.canaries.filter((canary) => !canary.knownTo.has(who) && forms(canary.text).some((form) => text.includes(form)));
  return {
    who,
    status: answer.status,
    text,
    body: answer.text.replace(/"request_id":"[^"]*"/, ''),
    leaks: leaks.map(({ what, text: leaked }) => `${who} was told the ${what} (${leaked}) by ${method} ${path} ${answer.status}`),
  };
}

function forms(text: string): string[] {
  const bytes = Buffer.from(text);
  return [text, bytes.toString('base64').replace(/=+$/, ''), bytes.toString('base64url'), bytes.toString('hex')];
}

/** An operation about something that a principal must not know is there: it is answered as if there were nothing. */
function isAboutSomething({ path }: Operation): boolean {
  return path.includes('{');
}

export function describeMatrix(mode: Mode): void {
  describe(`every operation and every principal, ${mode}`, () => {
    let world: World;
    let operations: ReadonlyMap<string, Operation>;

    beforeAll(async () => {
      world = await makeWorld();
      operations = await operationsOf(world);
      await world.stage.take(mode);
    }, 120_000);

    afterAll(() => world?.stop(), 60_000);

    it('has a row for every operation, and none for what is not there', () => {
      expect([...operations.keys()].toSorted()).toEqual(Object.keys(ROWS).toSorted());
    });

    it.each(Object.entries(ROWS))('%s', async (id, { call, answers }) => {
      const operation = operations.get(id);
      expect(operation, `${id} is no operation of the service`).toBeDefined();
      const statuses: Partial<Record<Who, number>> = {};
      const leaks: string[] = [];
      const oracles: string[] = [];
      const principals = PRINCIPALS.filter((who) => who === 'anonymous' || world.tokenOf(who) !== undefined);
      let sent: Call | null = null;
      for (const who of principals) {
        sent ??= (await call?.(world, who)) ?? {};
        const told = await ask(world, operation!, sent, who);
        statuses[who] = told.status;
        leaks.push(...told.leaks);
        const { params = {} } = sent;
        const again: Call = { ...sent, params: Object.fromEntries(Object.keys(params).map((name) => [name, randomUUID()])) };
        // What it was about is there as before: it need not be made again for the next one.
        if (told.status < 400 && operation!.method !== 'GET') sent = null;
        if (mode !== 'as it is' || answers[who] !== 404 || !isAboutSomething(operation!)) continue;
        const nothing = await ask(world, operation!, again, who);
        if (nothing.status !== told.status || nothing.body !== told.body) oracles.push(`${who}: ${told.body} and not ${nothing.body}`);
      }
      expect(leaks).toEqual([]);
      expect(oracles).toEqual([]);
      // With one layer gone the other refuses in its own way, or shows a list with nothing in it; what it must not do is to act.
      if (mode === 'as it is') expect(statuses).toEqual(Object.fromEntries(principals.map((who) => [who, answers[who]])));
      else if (operation!.method !== 'GET') for (const who of principals) if (answers[who] >= 400) expect(statuses[who], who).toBeGreaterThanOrEqual(400);
    });
  });
}
