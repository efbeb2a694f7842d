/** Requests per second of whole servers: one core for the server, the other for the load, 48 keep-alive connections. */
import type { ChildProcess } from 'node:child_process';
import type { Carriage, Run, RunResult } from './http-load.ts';
import type { ServerName } from './http-server.ts';
import { makePrivateJwk } from './material.ts';
import { messageOf, start } from './processes.ts';
import { rowsOf, type Row, type Suite } from './results.ts';
import { budgetOf, pairedMedian } from './rounds.ts';

const CONNECTIONS = 48;

const CONTESTANTS = {
  'node:http': { carriage: 'none', kind: 'limit' },
  'node:http + one bare verify': { carriage: 'none', kind: 'limit' },
  Express: { carriage: 'none', kind: 'limit' },
  'Express + the bare steps by hand': { carriage: 'keyguard', kind: 'limit' },
  'Express + KeyGuard': { carriage: 'keyguard', kind: 'ours' },
  'Express + jose ES256 bearer': { carriage: 'bearer', kind: 'peer' },
  'Express + jose ES256 bearer, body left unread': { carriage: 'bearer', kind: 'peer' },
  'Express + http-message-signatures': { carriage: 'rfc9421', kind: 'peer' },
} as const satisfies Record<ServerName, { carriage: Carriage; kind: Row['kind'] }>;

export const express: Suite = async ({ quick }) => {
  const privateJwk = await makePrivateJwk();
  const names = Object.keys(CONTESTANTS) as ServerName[];
  const processes: ChildProcess[] = [];
  try {
    const servers = await Promise.all(
      names.map(async (name) => {
        const child = start('./http-server.ts', 0, JSON.stringify({ name, privateJwk }));
        processes.push(child);
        return { name, child, port: (await messageOf(child)) as number };
      }),
    );
    const load = start('./http-load.ts', 1, JSON.stringify(privateJwk));
    processes.push(load);
    const drive = async (run: Run): Promise<number> => {
      const answer = messageOf(load);
      load.send(run);
      return ((await answer) as RunResult).requestsPerSecond;
    };

    const processorTime = async (server: ChildProcess): Promise<number> => {
      const answer = messageOf(server);
      server.send('processor time');
      return (await answer) as number;
    };

    const costs = new Map<ServerName, number[]>(names.map((name) => [name, []]));
    const rates = new Map<ServerName, number[]>(names.map((name) => [name, []]));
    const requests = new Map<ServerName, number>();
    const rounds = quick ? 3 : 20;
    const sliceSeconds = quick ? 0.25 : 0.6;
    // Only after some ten thousand requests has V8 compiled what it will compile.
    const warmUpRequests = quick ? [3000, 1000] : [6000, 6000, 3000];
    const budget = budgetOf(quick ? 18_000 : 110_000);
    for (let round = -warmUpRequests.length; round < rounds && budget.allows(round); round += 1) {
      for (let turn = 0; turn < servers.length; turn += 1) {
        const { name, child, port } = servers[(turn + Math.abs(round)) % servers.length]!;
        const count = warmUpRequests[warmUpRequests.length + round] ?? requests.get(name)!;
        const before = await processorTime(child);
        const rate = await drive({ port, carriage: CONTESTANTS[name].carriage, requests: count, connections: CONNECTIONS });
        const cost = ((await processorTime(child)) - before) / (count + 1);
        if (round < 0) {
          requests.set(name, Math.max(500, Math.round(rate * sliceSeconds)));
        } else {
          rates.get(name)!.push(rate);
          costs.get(name)!.push(cost);
        }
      }
    }
    const rate = (a: ServerName, b: ServerName): number => pairedMedian([rates.get(a)!, rates.get(b)!], (x, y) => x / y);
    const thrift = (a: ServerName, b: ServerName): number => pairedMedian([costs.get(a)!, costs.get(b)!], (x, y) => y / x);
    const kinds = Object.fromEntries(names.map((name) => [name, CONTESTANTS[name].kind]));
    return [
      {
        title: 'Whole servers, POST with a body of 1 KiB',
        about:
          'One core for the server, the other for the load; 48 keep-alive connections, one request in flight on each, signed ahead. KeyGuard reads the raw body, ' +
          'finds the device (kept in memory, behind a feed of changes), verifies, keeps the nonce and counts two limits. A bearer token covers neither the request nor its replay. Unless it says ' +
          'otherwise every server reads the body as bytes: the Express ones by express.raw, KeyGuard by its own reader.',
        unit: 'requests/s',
        rows: rowsOf(rates, kinds),
        ratios: [
          { name: 'KeyGuard / Express + jose', value: rate('Express + KeyGuard', 'Express + jose ES256 bearer'), goal: { atLeast: 1.3 } },
          {
            name: 'KeyGuard / Express + jose that leaves the body unread',
            value: rate('Express + KeyGuard', 'Express + jose ES256 bearer, body left unread'),
            goal: null,
          },
          { name: 'KeyGuard / node:http + one bare verify', value: rate('Express + KeyGuard', 'node:http + one bare verify'), goal: { atLeast: 0.75 } },
          { name: 'KeyGuard / the bare steps by hand', value: rate('Express + KeyGuard', 'Express + the bare steps by hand'), goal: null },
          { name: 'the bare steps by hand / Express + jose', value: rate('Express + the bare steps by hand', 'Express + jose ES256 bearer'), goal: null },
          {
            name: 'the bare steps by hand / node:http + one bare verify',
            value: rate('Express + the bare steps by hand', 'node:http + one bare verify'),
            goal: null,
          },
          { name: 'KeyGuard / Express + http-message-signatures', value: rate('Express + KeyGuard', 'Express + http-message-signatures'), goal: null },
        ],
      },
      {
        title: 'Whole servers, processor time per request',
        about:
          'The same runs, by what the process of the server took of its core, kernel and thread pool included. What else the machine does weighs less on this: ' +
          'on an idle machine both say the same, since each server fills its core.',
        unit: 'µs',
        rows: rowsOf(costs, kinds),
        ratios: [
          { name: 'Express + jose / KeyGuard, processor time', value: thrift('Express + KeyGuard', 'Express + jose ES256 bearer'), goal: null },
          { name: 'the bare steps by hand / KeyGuard, processor time', value: thrift('Express + KeyGuard', 'Express + the bare steps by hand'), goal: null },
          { name: 'node:http + one bare verify / KeyGuard, processor time', value: thrift('Express + KeyGuard', 'node:http + one bare verify'), goal: null },
        ],
      },
    ];
  } finally {
    for (const child of processes) if (child.connected) child.disconnect();
  }
};
