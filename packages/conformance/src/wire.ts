/**
 * The attack suites' workbench: a real server on a real socket behind whichever door, a key that signs, and a sender that writes
 * exactly the bytes it is told to.
 */
import { createServer, type RequestListener, type Server } from 'node:http';
import { connect, type AddressInfo } from 'node:net';
import { utf8 } from '@keyguard/core/bytes';
import { CARRIAGE_HEADERS, RFC9421_FIELDS, type Carriage, type SignatureTag } from '@keyguard/core/canonical';
import { memoryDeviceRegistry, memoryKeyStore, memoryReplayStore, type MemoryDeviceRegistry } from '@keyguard/core/memory';
import type { Bytes, Device, Random, SigningKey } from '@keyguard/core/seams';
import { createSigner } from '@keyguard/core/sign';
import { webCryptoRandom } from '@keyguard/core/system';
import {
  createEnrollment,
  createRotation,
  createVerifier,
  generateEnrollmentCode,
  generateRotationCode,
  hashEnrollmentCode,
  hashRotationCode,
  type EnrollmentOptions,
  type RejectionEvent,
  type RotationOptions,
  type VerifiedRequest,
  type Verifier,
} from '@keyguard/server-verifier';
import type { DeviceRoutesOptions } from '@keyguard/server-verifier/routes';

/** Under which the benches are reached, as far as signatures know. */
export const AUTHORITY = 'api.example.com';
/** What the clocks of the benches say at first, Unix milliseconds. */
export const NOW_MS = 1_800_000_000_000;

/** Names and values in the order in which they are sent; a name may come twice. */
export type Headers = [name: string, value: string][];

/** A request as bytes to be; every part may be bent before it is sent. */
export interface WireRequest {
  method: string;
  target: string;
  headers: Headers;
  body: Bytes;
}

/** An answer, read off the wire. */
export interface WireAnswer {
  readonly status: number;
  readonly headers: ReadonlyMap<string, string>;
  readonly body: string;
  readonly code: string | null;
}

/** What a server is built of that has the routes of devices below `/api/keyguard` and the door in front of `/proxy`. */
export interface DoorParts extends DeviceRoutesOptions {
  readonly verifier: Verifier;
  /** To be called behind the door; what it returns is to be answered as JSON. */
  readonly passed: (verified: VerifiedRequest) => object;
}

/** A door as the suites know it. `App` is what stands in front of it can be mounted on. */
export interface Door<App> {
  /**
   * Whether it sees the header list and the target as they were sent. Otherwise a runtime has joined the one and resolved the other
   * before, and what it made of them is the message (request signing, section 15).
   */
  readonly seesWire: boolean;
  /** A server with this door; a mistake in the program is answered by 500 and `{ code }`. `before` runs before anything is mounted. */
  open(parts: DoorParts, before?: (app: App) => void): RequestListener;
  /** Mounts a parser of JSON, which reads the body first. */
  parseFirst(app: App): void;
}

/** A server to be attacked, and what it saw. */
export interface Workbench {
  readonly port: number;
  readonly registry: MemoryDeviceRegistry;
  /** What reached the handler behind the door. */
  readonly passed: VerifiedRequest[];
  readonly rejections: RejectionEvent[];
  readonly time: { nowMs: number };
  /** An enrollment code; good for one device unless it is said otherwise. */
  newCode(options?: { expiresAtMs?: number; maxUses?: number; autoApprove?: boolean }): string;
  /** A code with which the device of this key replaces it. */
  newRotationCode(key: Pick<SigningKey, 'keyId'>, options?: { expiresAtMs?: number }): string;
  /** A key that no server knows. */
  newKey(): Promise<SigningKey>;
  /** The key of an active device. */
  enrolledKey(): Promise<SigningKey>;
  /** Ends the server. */
  close(): Promise<void>;
}

/** What the server does otherwise than by default. */
export interface WorkbenchOptions<App> extends Partial<EnrollmentOptions & RotationOptions> {
  /** Runs before the door is mounted. */
  readonly before?: (app: App) => void;
}

async function openWorkbench<App>(door: Door<App>, { before, ...options }: WorkbenchOptions<App>): Promise<Workbench> {
  const time = { nowMs: NOW_MS };
  const clock = { nowMs: (): number => time.nowMs };
  const registry = memoryDeviceRegistry();
  const passed: VerifiedRequest[] = [];
  const rejections: RejectionEvent[] = [];
  const verifierOptions: EnrollmentOptions & RotationOptions = {
    registry,
    clock,
    replayStore: memoryReplayStore({ clock, maxFutureSeconds: 60, startedAtMs: 0 }),
    enrollmentsPerMinute: 100_000,
    rotationsPerMinute: 100_000,
    onRejected: (event) => void rejections.push(event),
    ...options,
    policy: { authorities: [AUTHORITY], requestsPerMinute: 1_000_000, requestsPerMinutePerIp: 1_000_000, ...options.policy },
  };
  const verifier = createVerifier(verifierOptions);
  const enrollment = createEnrollment(verifierOptions);
  const parts: DoorParts = {
    verifier,
    enrollment,
    rotation: createRotation(verifierOptions),
    passed(request) {
      passed.push(request);
      return { path: request.path, bytes: request.body.length };
    },
  };
  const server: Server = createServer(door.open(parts, before));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  const keyStore = memoryKeyStore();
  let keys = 0;
  const bench: Workbench = {
    port,
    registry,
    passed,
    rejections,
    time,
    newCode(code = {}) {
      const text = generateEnrollmentCode(webCryptoRandom());
      registry.addCode({ codeHash: hashEnrollmentCode(text)!, ownerId: 'owner', expiresAtMs: NOW_MS + 900_000, ...code });
      return text;
    },
    newRotationCode({ keyId }, code = {}) {
      const text = generateRotationCode(webCryptoRandom());
      const { deviceId } = registry.findByKeyId(keyId) as Device;
      registry.addRotationCode({ codeHash: hashRotationCode(text)!, deviceId, expiresAtMs: NOW_MS + 900_000, ...code });
      return text;
    },
    newKey() {
      keys += 1;
      return keyStore.getOrCreate(String(keys));
    },
    async enrolledKey() {
      const key = await bench.newKey();
      registry.addCode({ codeHash: key.keyId, ownerId: 'owner', expiresAtMs: NOW_MS + 900_000 });
      registry.enroll({ keyId: key.keyId, publicKey: key.publicKey, codeHash: key.keyId, label: null, fingerprint: null, nowMs: NOW_MS });
      return key;
    },
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
  return bench;
}

/** What is signed, where it is not the default; `nowMs` is in Unix milliseconds. */
export interface SignOptions {
  method?: string;
  target?: string;
  authority?: string;
  headers?: Headers;
  body?: string | Bytes;
  nowMs?: number;
  random?: Random;
  tag?: SignatureTag;
  carriage?: Carriage;
}

/**
 * A request that `key` signed, complete with its Host.
 * @throws UsageError as a signer does: what no verifier would accept is not signed
 */
export async function signed(key: SigningKey, options: SignOptions = {}): Promise<WireRequest> {
  const { method = 'POST', target = '/proxy/openai/v1/chat/completions?a=1&b=2', authority = AUTHORITY, nowMs = NOW_MS } = options;
  const text = options.body ?? '{"model":"m"}';
  const body = typeof text === 'string' ? utf8(text) : text;
  const headers: Headers = options.headers ?? [['content-type', 'application/json']];
  const { carriage = 'headers', random } = options;
  const sign = createSigner({ key, carriage, clock: { nowMs: () => nowMs }, ...(random && { random }) });
  const signature = await sign({ method, authority, target, headers, body }, options.tag ?? 'keyguard-v1');
  return { method, target, headers: [['host', authority], ...headers, ...(Object.entries(signature) as Headers)], body };
}

/** A bench and a signer, in one carriage. */
export interface Wire<App> {
  /** The names of the headers that carry a signature. */
  readonly carriers: readonly string[];
  /** A server behind this door, with everything that it stands on. */
  openWorkbench(options?: WorkbenchOptions<App>): Promise<Workbench>;
  /** A request in this carriage that `key` signed, complete with its Host. */
  signed(key: SigningKey, options?: SignOptions): Promise<WireRequest>;
}

/** The bench and the signer for one door, in one carriage. */
export function wireThrough<App>(door: Door<App>, carriage: Carriage = 'headers'): Wire<App> {
  return {
    carriers: carriage === 'headers' ? CARRIAGE_HEADERS : RFC9421_FIELDS,
    openWorkbench: (options = {}) => openWorkbench(door, { ...options, policy: { authorities: [AUTHORITY], ...options.policy, carriage } }),
    signed: (key, options) => signed(key, { carriage, ...options }),
  };
}

// Where the RFC 9421 carriage has what the default one has under these names.
const PLACES: Record<string, readonly [field: string, value: RegExp]> = {
  'x-keyguard-key-id': ['signature-input', /(?<=;keyid=")[^"]*/],
  'x-keyguard-timestamp': ['signature-input', /(?<=;created=)[^;]*/],
  'x-keyguard-nonce': ['signature-input', /(?<=;nonce=")[^"]*/],
  'x-keyguard-body-sha256': ['content-digest', /(?<=^sha-256=:)[^:]*/],
  'x-keyguard-signature': ['signature', /(?<=^keyguard=:)[^:]*/],
};

/** The present value of a header, or of what the other carriage has in its place. */
export function valueOf(request: WireRequest, name: string): string {
  const header = request.headers.find(([other]) => other === name);
  if (header !== undefined) return header[1];
  const [field, value] = PLACES[name]!;
  return value.exec(valueOf(request, field))![0];
}

/** A copy in which a header, or what the other carriage has in its place, has another value. */
export function withHeader(request: WireRequest, name: string, value: string): WireRequest {
  const place = PLACES[name];
  if (place !== undefined && !request.headers.some(([other]) => other === name)) {
    const [field, form] = place;
    return withHeader(request, field, valueOf(request, field).replace(form, () => value));
  }
  return { ...request, headers: request.headers.map(([other, old]) => [other, other === name ? value : old]) };
}

/** A copy without a header. */
export function withoutHeader(request: WireRequest, name: string): WireRequest {
  return { ...request, headers: request.headers.filter(([other]) => other !== name) };
}

/** A copy with one header more, which may be there already. */
export function addHeader(request: WireRequest, name: string, value: string): WireRequest {
  return { ...request, headers: [...request.headers, [name, value]] };
}

/** How the end of a body is told. */
export interface Framing {
  readonly chunked?: boolean;
}

/** The bytes of a request, framed by length or in chunks. */
export function toBytes(request: WireRequest, { chunked = false }: Framing = {}): Buffer {
  const lines = [`${request.method} ${request.target} HTTP/1.1`, ...request.headers.map(([name, value]) => `${name}: ${value}`)];
  const body = Buffer.from(request.body);
  if (chunked) {
    lines.push('transfer-encoding: chunked', 'connection: close', '', '');
    const size = Buffer.from(`${body.length.toString(16)}\r\n`);
    const rest = body.length > 0 ? [size, body, Buffer.from('\r\n0\r\n\r\n')] : [Buffer.from('0\r\n\r\n')];
    return Buffer.concat([Buffer.from(lines.join('\r\n'), 'latin1'), ...rest]);
  }
  if (body.length > 0) lines.push(`content-length: ${body.length}`);
  lines.push('connection: close', '', '');
  return Buffer.concat([Buffer.from(lines.join('\r\n'), 'latin1'), body]);
}

/** A connection on which a request is written piece by piece. */
export interface Line {
  /** Writes at once, without waiting for an answer. */
  write(bytes: Uint8Array | string): void;
  /** Leaves in the middle of what it was saying. */
  leave(): void;
  /** What was answered when the server had closed the connection. Status 0 when it closed without an answer. */
  readonly answer: Promise<WireAnswer>;
}

/** Opens a connection to a port of the loopback. */
export function dial(port: number): Line {
  const socket = connect(port, '127.0.0.1');
  const answer = new Promise<WireAnswer>((resolve, reject) => {
    const chunks: Buffer[] = [];
    const done = (): void => resolve(parseAnswer(Buffer.concat(chunks).toString('latin1')));
    socket.setTimeout(10_000, () => socket.destroy(new Error('no answer within 10 s')));
    socket.on('data', (chunk) => chunks.push(chunk));
    socket.on('error', (error: NodeJS.ErrnoException) => (error.code === 'ECONNRESET' || error.code === 'EPIPE' ? done() : reject(error)));
    socket.on('close', done);
  });
  return { write: (bytes) => void socket.write(bytes), leave: () => void socket.destroy(), answer };
}

/** Writes `bytes` on a new connection and reads until the server closes it. */
export function exchange(port: number, bytes: Uint8Array | string): Promise<WireAnswer> {
  const line = dial(port);
  line.write(bytes);
  return line.answer;
}

function parseAnswer(text: string): WireAnswer {
  const [head = '', ...rest] = text.split('\r\n\r\n');
  const [statusLine = '', ...lines] = head.split('\r\n');
  const headers = new Map(
    lines.map((line): [string, string] => {
      const colon = line.indexOf(':');
      return [line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim()];
    }),
  );
  const body = rest.join('\r\n\r\n');
  return { status: Number(statusLine.split(' ')[1] ?? 0), headers, body, code: /"code":"([a-z_]+)"/.exec(body)?.[1] ?? null };
}

/** Sends a request on a connection of its own. */
export async function send(bench: Workbench, request: WireRequest, framing?: Framing): Promise<WireAnswer> {
  return exchange(bench.port, toBytes(request, framing));
}
