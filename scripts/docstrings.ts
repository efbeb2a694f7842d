/**
 * What a reader of the documentation is promised, as a check: every name that a package exports says what it guarantees; every
 * number says its unit, in its name or in words; and every function that throws says so, with the codes that it throws itself.
 *
 * It reads the sources that the packages' `exports` lead to, by TypeScript's own compiler. Where a throw can come from is followed
 * through calls into other files of the packages, but not through interfaces, nor out of a `try` that has a `catch`.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import ts from 'typescript';

const ERRORS = new Set(['UsageError', 'RejectedError', 'UnavailableError']);
// A number that bears one of these needs no words: its unit is in its name, or it has none, as a port and an HTTP status.
const UNIT = /^(?:ms|port|status)$|(?:Ms|Seconds|Minutes|Bytes|Pixels|PerMinute|PerMinutePerIp)$/;

/** The entry points of all packages, as absolute paths. */
export function entryPoints(root: string): string[] {
  const packages = readdirSync(join(root, 'packages')).map((name) => join(root, 'packages', name));
  return packages.flatMap((folder) => {
    const { exports = {}, private: isPrivate = false } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8')) as {
      exports?: Record<string, Record<string, string>>;
      private?: boolean;
    };
    return isPrivate ? [] : Object.values(exports).map((conditions) => join(folder, conditions['@keyguard/source']!));
  });
}

type Callable = ts.FunctionLikeDeclaration & { readonly body: ts.ConciseBody };

function isCallable(node: ts.Node | undefined): node is Callable {
  return node !== undefined && ts.isFunctionLike(node) && (node as Partial<Callable>).body !== undefined;
}

interface Throws {
  /** Codes in `throw` statements of the function itself. */
  readonly own: ReadonlySet<string>;
  /** Whether it throws one of our errors, itself or by what it calls. */
  readonly any: boolean;
}

/** The public names without words, units or codes, each as `file:line name: what is missing`. */
export function missingIn(files: readonly string[], root: string, options: ts.CompilerOptions): string[] {
  const program = ts.createProgram(files, options);
  const checker = program.getTypeChecker();
  const problems = new Set<string>();
  const known = new Map<Callable, Throws>();

  function report(node: ts.Node, name: string, what: string): void {
    const file = node.getSourceFile();
    const { line } = file.getLineAndCharacterOfPosition(node.getStart(file));
    problems.add(`${relative(root, file.fileName)}:${line + 1} ${name}: ${what}`);
  }

  const isOurs = (node: ts.Node): boolean => !program.isSourceFileFromExternalLibrary(node.getSourceFile()) && !node.getSourceFile().isDeclarationFile;
  const wordsOf = (symbol: ts.Symbol): string => ts.displayPartsToString(symbol.getDocumentationComment(checker)).trim();
  const throwsTags = (node: ts.Node): string[] => ts.getJSDocTags(node).filter(({ tagName }) => tagName.text === 'throws').map(({ comment }) => ts.getTextOfJSDocComment(comment) ?? '');

  /** The function behind a name: itself, or what a constant was set to. */
  function callableOf(declaration: ts.Declaration | undefined): Callable | null {
    if (isCallable(declaration)) return declaration;
    if (declaration !== undefined && (ts.isVariableDeclaration(declaration) || ts.isPropertyDeclaration(declaration)) && isCallable(declaration.initializer)) return declaration.initializer;
    return null;
  }

  function calledBy(call: ts.CallExpression | ts.NewExpression): Callable | null {
    const declaration = checker.getResolvedSignature(call)?.declaration;
    return declaration !== undefined && isOurs(declaration) ? callableOf(declaration as ts.Declaration) : null;
  }

  /** The codes of the error that is thrown: of `new RejectedError('code', …)`, or of a function that makes one. */
  function codesOf(thrown: ts.Expression, depth = 0): string[] {
    if (ts.isNewExpression(thrown) && ts.isIdentifier(thrown.expression) && ERRORS.has(thrown.expression.text)) {
      const [first] = thrown.arguments ?? [];
      const told = first !== undefined && ts.isStringLiteral(first) && thrown.expression.text !== 'UnavailableError' ? [first.text] : [];
      return told.length > 0 ? told : [thrown.expression.text];
    }
    const maker = ts.isCallExpression(thrown) ? calledBy(thrown) : null;
    if (maker === null || depth > 3) return [];
    const made: string[] = [];
    const visit = (node: ts.Node): void => {
      if (ts.isReturnStatement(node) && node.expression !== undefined) made.push(...codesOf(node.expression, depth + 1));
      else if (!ts.isFunctionLike(node)) ts.forEachChild(node, visit);
    };
    if (ts.isBlock(maker.body)) visit(maker.body);
    else made.push(...codesOf(maker.body, depth + 1));
    return made;
  }

  function throwsOf(callable: Callable): Throws {
    const before = known.get(callable);
    if (before !== undefined) return before;
    // A circle of calls adds nothing to itself.
    known.set(callable, { own: new Set(), any: false });
    const own = new Set<string>();
    let any = false;
    const visit = (node: ts.Node): void => {
      if (ts.isTryStatement(node) && node.catchClause !== undefined) {
        visit(node.catchClause.block);
        if (node.finallyBlock !== undefined) visit(node.finallyBlock);
        return;
      }
      // A function in it throws when it is called, not now.
      if (ts.isFunctionLike(node) && node !== callable) return;
      if (ts.isThrowStatement(node)) for (const code of codesOf(node.expression)) own.add(code);
      const called = ts.isCallExpression(node) || ts.isNewExpression(node) ? calledBy(node) : null;
      if (called !== null && throwsOf(called).any) any = true;
      ts.forEachChild(node, visit);
    };
    visit(callable.body);
    const found = { own, any: any || own.size > 0 };
    known.set(callable, found);
    return found;
  }

  function checkThrows(callable: Callable, documented: ts.Node, name: string): void {
    const { own, any } = throwsOf(callable);
    const said = throwsTags(documented).join(' ');
    if (any && said === '') report(documented, name, 'throws, and has no @throws');
    const missing = [...own].filter((code) => !said.includes(code));
    if (said !== '' && missing.length > 0) report(documented, name, `throws ${missing.join(', ')}, which its @throws does not name`);
  }

  const isNumeric = (type: ts.Type): boolean => (type.isUnion() ? type.types : [type]).some(({ flags }) => (flags & ts.TypeFlags.NumberLike) !== 0) && (type.flags & ts.TypeFlags.EnumLike) === 0;

  function checkNumbers(declaration: ts.SignatureDeclaration, name: string): void {
    for (const parameter of declaration.parameters) {
      if (!ts.isIdentifier(parameter.name) || UNIT.test(parameter.name.text) || !isNumeric(checker.getTypeAtLocation(parameter))) continue;
      const told = ts.getJSDocParameterTags(parameter).length > 0 || new RegExp(`\`${parameter.name.text}\``).test(textOf(declaration));
      if (!told) report(parameter, `${name}(${parameter.name.text})`, 'a number without a unit');
    }
  }

  /** All words of the comment before a declaration. */
  function textOf(declaration: ts.Node): string {
    const holder = ts.isVariableDeclaration(declaration.parent) ? declaration.parent.parent.parent : declaration;
    return ts.getJSDocCommentsAndTags(holder).map((comment) => comment.getText()).join('\n');
  }

  function checkMember(member: ts.Symbol, owner: string): void {
    for (const declaration of member.declarations ?? []) {
      const isHidden = (ts.getCombinedModifierFlags(declaration) & (ts.ModifierFlags.Private | ts.ModifierFlags.Protected)) !== 0 || member.name.startsWith('#');
      if (isHidden || !isOurs(declaration)) continue;
      const name = `${owner}.${member.name}`;
      const isMethod = ts.isMethodDeclaration(declaration) || ts.isMethodSignature(declaration) || ts.isConstructorDeclaration(declaration);
      if (isMethod) {
        if (!ts.isConstructorDeclaration(declaration) && wordsOf(member) === '') report(declaration, name, 'says nothing');
        checkNumbers(declaration, name);
      } else if ((ts.isPropertySignature(declaration) || ts.isPropertyDeclaration(declaration)) && !UNIT.test(member.name)) {
        if (isNumeric(checker.getTypeAtLocation(declaration)) && wordsOf(member) === '') report(declaration, name, 'a number without a unit');
      }
      const callable = callableOf(declaration);
      if (callable !== null) checkThrows(callable, declaration, name);
    }
  }

  function checkExport(symbol: ts.Symbol): void {
    const resolved = (symbol.flags & ts.SymbolFlags.Alias) === 0 ? symbol : checker.getAliasedSymbol(symbol);
    for (const declaration of resolved.declarations ?? []) {
      if (!isOurs(declaration)) continue;
      if (wordsOf(resolved) === '') report(declaration, resolved.name, 'says nothing');
      const callable = callableOf(declaration);
      if (callable !== null) {
        checkThrows(callable, declaration, resolved.name);
        checkNumbers(callable, resolved.name);
      }
      if (ts.isInterfaceDeclaration(declaration) || ts.isClassDeclaration(declaration)) {
        for (const member of declaration.members) {
          const own = ts.isConstructorDeclaration(member) ? checker.getSymbolAtLocation(declaration.name!)!.members!.get(ts.InternalSymbolName.Constructor) : member.name && checker.getSymbolAtLocation(member.name);
          if (own !== undefined) checkMember(own, resolved.name);
        }
      }
      if (ts.isVariableDeclaration(declaration) && isNumeric(checker.getTypeAtLocation(declaration)) && !/_(?:MS|SECONDS|BYTES|MINUTES)$/.test(resolved.name) && wordsOf(resolved) === '') {
        report(declaration, resolved.name, 'a number without a unit');
      }
    }
  }

  for (const file of files) {
    const source = program.getSourceFile(file);
    const module = source && checker.getSymbolAtLocation(source);
    if (module === undefined) throw new Error(`${file} is no module.`);
    for (const symbol of checker.getExportsOfModule(module)) checkExport(symbol);
  }
  return [...problems].toSorted();
}
