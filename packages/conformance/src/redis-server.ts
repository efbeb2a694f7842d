/** A real Redis or Valkey server on a free port of the loopback, in a folder of its own, which tests may stop, kill and start again. */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { connect, createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';

const START_MS = 10_000;

/** A Redis of its own, on a free port of the loopback, to be mistreated. */
export interface RedisServer {
  readonly port: number;
  readonly url: string;
  /** SIGSTOP: it keeps its connections, accepts new ones, and says nothing. */
  freeze(): void;
  /** SIGCONT. */
  thaw(): void;
  /** SIGKILL; resolves when it is gone. */
  kill(): Promise<void>;
  /** Starts it again, on the same port and in the same folder. */
  start(): Promise<void>;
  /** Sends one command by a connection of its own, and resolves with the first line of its answer or the bulk string in it. */
  ask(...command: string[]): Promise<string>;
  /** Ends it for good, and removes its folder. */
  stop(): Promise<void>;
}

// A test that fails half-way must not leave a server behind.
const living = new Set<ChildProcess>();
process.once('exit', () => {
  for (const child of living) child.kill('SIGKILL');
});

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Starts `executable` without persistence; `settings` are those of redis.conf, and win. */
export async function startRedisServer(executable: string, settings: Readonly<Record<string, string>> = {}): Promise<RedisServer> {
  const folder = await mkdtemp(join(tmpdir(), 'keyguard-redis-'));
  const port = await freePort();
  const all = { port: String(port), bind: '127.0.0.1', dir: folder, save: '', appendonly: 'no', daemonize: 'no', ...settings };
  const args = Object.entries(all).flatMap(([name, value]) => [`--${name}`, ...(value === '' ? [''] : value.split(' '))]);
  let child: ChildProcess | undefined;
  let output = '';

  async function start(): Promise<void> {
    const started = spawn(executable, args, { cwd: folder, stdio: ['ignore', 'pipe', 'pipe'] });
    child = started;
    living.add(started);
    started.once('close', () => living.delete(started));
    output = '';
    started.stdout.setEncoding('utf8').on('data', (text: string) => (output += text));
    started.stderr.setEncoding('utf8').on('data', (text: string) => (output += text));
    const deadlineMs = performance.now() + START_MS;
    // One that demands a password answers too.
    while (!/PONG|NOAUTH/.test(await ask('PING').catch((error: Error) => error.message))) {
      if (started.exitCode !== null || performance.now() > deadlineMs) {
        started.kill('SIGKILL');
        throw new Error(`${executable} did not start:\n${output}`);
      }
      await pause(20);
    }
  }

  async function ask(...command: string[]): Promise<string> {
    const socket = connect(port, '127.0.0.1');
    socket.setTimeout(2000, () => socket.destroy(new Error('Redis did not answer.')));
    try {
      await once(socket, 'connect');
      socket.write(`*${command.length}\r\n${command.map((part) => `$${Buffer.byteLength(part)}\r\n${part}\r\n`).join('')}`);
      let text = '';
      for await (const chunk of socket) {
        text += String(chunk);
        const bulk = /^\$(\d+)\r\n/.exec(text);
        if (bulk !== null) {
          if (text.length >= bulk[0].length + Number(bulk[1]) + 2) return text.slice(bulk[0].length, -2);
        } else if (text.includes('\r\n')) {
          const line = text.slice(0, text.indexOf('\r\n'));
          if (line.startsWith('-')) throw new Error(line.slice(1));
          return line.slice(1);
        }
      }
      throw new Error('Redis closed the connection.');
    } finally {
      socket.destroy();
    }
  }

  async function kill(): Promise<void> {
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const gone = once(child, 'close');
    child.kill('SIGKILL');
    await gone;
  }

  await start();
  return {
    port,
    url: `redis://127.0.0.1:${port}`,
    freeze: () => void child?.kill('SIGSTOP'),
    thaw: () => void child?.kill('SIGCONT'),
    kill,
    start,
    ask,
    async stop(): Promise<void> {
      await kill();
      await rm(folder, { recursive: true, force: true });
    },
  };
}
