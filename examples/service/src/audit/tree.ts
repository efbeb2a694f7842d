/**
 * The Merkle tree over a chain, kept in tiles of 256 hashes. What is complete is written once and never again; so a checkpoint costs
 * the entries that are new, and a proof reads a handful of rows however long the log is.
 *
 * Tiles are rows of the database and vouch for nothing: what they say is worth what the signed root that comes out of them is.
 */
import { concat } from '@keyguard/core/bytes';
import { UnavailableError } from '@keyguard/core/errors';
import { leafHash, nodeHash, type Sha256 } from '@keyguard/core/merkle';
import type { Bytes, SubtreePlace, SubtreeReader } from '@keyguard/core/seams';
import { nodePrimitives } from '@keyguard/server-verifier';
import type { Sql, SqlTransaction } from '@keyguard/storage-node/postgres';
import { asJobs } from '../db/as-user.ts';
import { bytesOf, integer } from '../db/values.ts';

const HEIGHT = 8;
const WIDTH = 256;
const HASH_BYTES = 32;
/** Tiles that one transaction makes: a queue that others wait in must not stand still. */
const TILES_AT_ONCE = 1;

/** The hash of every tree here: answers at once. */
export const sha256: Sha256 = nodePrimitives();

/** Of a tile: hashes that stand side by side at one height, and where they begin. */
interface Span {
  readonly level: number;
  readonly from: number;
  readonly count: number;
}

/** What holds the hash of `place`: the hashes at the foot of its tile from which it is made. */
function spanOf({ level, index }: SubtreePlace): Span {
  const foot = Math.floor(level / HEIGHT);
  const count = 2 ** (level - foot * HEIGHT);
  return { level: foot, from: index * count, count };
}

const keyOf = (level: number, place: number): string => `${level}/${place}`;

async function rootOf(hashes: readonly Bytes[]): Promise<Bytes> {
  let row = hashes;
  while (row.length > 1) {
    const above: Bytes[] = [];
    for (let i = 0; i < row.length; i += 2) above.push(await nodeHash(row[i]!, row[i + 1]!, sha256));
    row = above;
  }
  return row[0]!;
}

function split(hashes: Bytes): Bytes[] {
  return Array.from({ length: hashes.length / HASH_BYTES }, (_, i) => hashes.subarray(i * HASH_BYTES, (i + 1) * HASH_BYTES));
}

/** The hashes of the leaves from `from` to before `to`, made of the entries themselves. */
async function leafHashes(tx: SqlTransaction, origin: string, from: number, to: number): Promise<Bytes[]> {
  const { rows } = await tx.query<{ entry: unknown }>(
    'SELECT entry FROM keyguard.secret_audit_logs WHERE origin = $1 AND seq >= $2::bigint AND seq < $3::bigint ORDER BY seq',
    [origin, from, to],
  );
  if (rows.length !== to - from) throw missing();
  return Promise.all(rows.map(({ entry }) => leafHash(bytesOf(entry), sha256)));
}

/** The roots of complete tiles, which are the hashes one level up. */
async function tileRoots(tx: SqlTransaction, origin: string, level: number, from: number, to: number): Promise<Bytes[]> {
  const { rows } = await tx.query<{ root: unknown }>(
    'SELECT root FROM keyguard.audit_tree_tiles WHERE origin = $1 AND level = $2 AND place >= $3::bigint AND place < $4::bigint ORDER BY place',
    [origin, level, from, to],
  );
  if (rows.length !== to - from) throw missing();
  return rows.map(({ root }) => bytesOf(root));
}

function missing(): UnavailableError {
  return new UnavailableError('audit_tree', 'The tree of the audit log lacks a part that it must have.');
}

/**
 * Tiles that were read before: what is complete never changes, and what stands to the right of it only grows. It is for proofs alone,
 * which are held to a signed root: whoever asks what the database says now MUST begin with an empty one. Bounded.
 */
export interface TileMemory {
  get(level: number, place: number): readonly Bytes[] | undefined;
  put(level: number, place: number, hashes: readonly Bytes[]): void;
  /** To be called when a proof did not come out right: something that was read was wrong. */
  forget(): void;
}

// Some 30 KiB each.
const MAX_REMEMBERED = 256;

export function tileMemory(): TileMemory {
  const kept = new Map<string, readonly Bytes[]>();
  return {
    get: (level, place) => kept.get(keyOf(level, place)),
    put(level, place, hashes) {
      const key = keyOf(level, place);
      kept.delete(key);
      if (kept.size >= MAX_REMEMBERED) kept.delete(kept.keys().next().value!);
      kept.set(key, hashes);
    },
    forget: () => kept.clear(),
  };
}

/** Of one tile, complete or not: how many of its hashes are wanted. */
interface Wanted {
  readonly level: number;
  readonly place: number;
  readonly count: number;
}

function wantedOf(spans: readonly Span[]): readonly Wanted[] {
  const all = new Map<string, Wanted>();
  for (const { level, from, count } of spans) {
    const place = Math.floor(from / WIDTH);
    const end = from + count - place * WIDTH;
    all.set(keyOf(level, place), { level, place, count: Math.max(end, all.get(keyOf(level, place))?.count ?? 0) });
  }
  return [...all.values()];
}

/** Reads the hashes of complete subtrees out of tiles, and what is to the right of the tiles out of what these are made of. */
export function tileReader(sql: Sql, origin: string, memory: TileMemory = tileMemory()): SubtreeReader {
  const lacks = ({ level, place, count }: Wanted): boolean => (memory.get(level, place)?.length ?? 0) < count;

  async function fetch(tx: SqlTransaction, wanted: readonly Wanted[]): Promise<void> {
    const { rows } = await tx.query<{ level: unknown; place: unknown; hashes: unknown }>(
      `SELECT t.level, t.place, t.hashes FROM unnest($2::smallint[], $3::bigint[]) AS w (level, place)
        JOIN keyguard.audit_tree_tiles t ON t.origin = $1 AND t.level = w.level AND t.place = w.place`,
      [origin, wanted.map(({ level }) => level), wanted.map(({ place }) => place)],
    );
    for (const { level, place, hashes } of rows) memory.put(integer(level), integer(place), split(bytesOf(hashes)));
    // To the right of the tiles: each level's edge is read once, and of what is known already only what has been added.
    for (const { level, place, count } of wanted.filter(lacks)) {
      const known = memory.get(level, place) ?? [];
      const [from, to] = [place * WIDTH + known.length, place * WIDTH + count];
      const edge = level === 0 ? await leafHashes(tx, origin, from, to) : await tileRoots(tx, origin, level - 1, from, to);
      memory.put(level, place, [...known, ...edge]);
    }
  }

  return {
    async read(places) {
      const spans = places.map(spanOf);
      const wanted = wantedOf(spans);
      const missing = wanted.filter(lacks);
      if (missing.length > 0) await asJobs(sql, (tx) => fetch(tx, missing));
      const hashes: Bytes[] = [];
      for (const { level, from, count } of spans) {
        const place = Math.floor(from / WIDTH);
        hashes.push(await rootOf(memory.get(level, place)!.slice(from - place * WIDTH, from - place * WIDTH + count)));
      }
      return hashes;
    },
  };
}

interface Tile {
  readonly place: number;
  readonly hashes: readonly Bytes[];
}

async function keep(tx: SqlTransaction, origin: string, level: number, tiles: readonly Tile[]): Promise<void> {
  const roots = await Promise.all(tiles.map(({ hashes }) => rootOf(hashes)));
  const base64 = (bytes: Uint8Array): string => Buffer.from(bytes).toString('base64');
  await tx.query(
    // Another replica may have made the same tiles; of the same entries nothing else comes out.
    `INSERT INTO keyguard.audit_tree_tiles (origin, level, place, hashes, root)
      SELECT $1, $2::smallint, t.place, decode(t.hashes, 'base64'), decode(t.root, 'base64')
      FROM unnest($3::bigint[], $4::text[], $5::text[]) AS t (place, hashes, root) ON CONFLICT DO NOTHING`,
    [origin, level, tiles.map(({ place }) => place), tiles.map(({ hashes }) => base64(concat(...hashes))), roots.map(base64)],
  );
}

/** How many tiles of `level` are kept; they have no gaps. */
async function countTiles(tx: SqlTransaction, origin: string, level: number): Promise<number> {
  const { rows } = await tx.query<{ count: unknown }>(
    'SELECT coalesce(max(place) + 1, 0) AS count FROM keyguard.audit_tree_tiles WHERE origin = $1 AND level = $2',
    [origin, level],
  );
  return integer(rows[0]!.count);
}

/** Makes the next tiles of one level that are complete in a tree of `size`; whether there are more. */
async function growLevel(sql: Sql, origin: string, level: number, size: number): Promise<boolean> {
  return asJobs(sql, async (tx) => {
    const from = await countTiles(tx, origin, level);
    const complete = Math.floor(size / WIDTH ** (level + 1));
    const to = Math.min(complete, from + TILES_AT_ONCE);
    if (to <= from) return false;
    const hashes = await (level === 0 ? leafHashes(tx, origin, from * WIDTH, to * WIDTH) : tileRoots(tx, origin, level - 1, from * WIDTH, to * WIDTH));
    const tiles = Array.from({ length: to - from }, (_, i) => ({ place: from + i, hashes: hashes.slice(i * WIDTH, (i + 1) * WIDTH) }));
    await keep(tx, origin, level, tiles);
    return to < complete;
  });
}

/**
 * Keeps every tile that is complete in a tree of `size` entries, which MUST be there. Reads the entries that no tile holds yet, and
 * at most 255 others. Any number of processes may do it at once.
 */
export async function growTiles(sql: Sql, origin: string, size: number): Promise<void> {
  for (let level = 0; size >= WIDTH ** (level + 1); level += 1) {
    while (await growLevel(sql, origin, level, size));
  }
}
